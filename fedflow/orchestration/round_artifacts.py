"""What the Prefect UI shows beside the task graph: progress, tables of rounds and sites, the end.

Only what is public about a round: who took part and why not, times, bytes, and the noised score.
All of it is best effort (:mod:`fedflow.orchestration.publishing`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from uuid import UUID
from weakref import WeakKeyDictionary

from prefect.artifacts import (
    MarkdownArtifact,
    ProgressArtifact,
    TableArtifact,
    aupdate_progress_artifact,
)

from fedflow.coordinator.records import RoundRecord
from fedflow.coordinator.runner import JobRunner
from fedflow.orchestration import round_tables
from fedflow.orchestration.charts import rounds_chart
from fedflow.orchestration.publishing import PATIENCE, Latest, attempt, create, svg_url
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.orchestration.tasks import LiveJob


class _Shown:
    """What of one running job is on its way to the server, and what is there."""

    def __init__(self) -> None:
        self.progress, self.rounds = Latest(), Latest()
        self.bar: UUID | None = None


_SHOWN: WeakKeyDictionary[JobRunner, _Shown] = WeakKeyDictionary()


def _shown(live: LiveJob) -> _Shown:
    return _SHOWN.setdefault(live.runner, _Shown())


async def publish_progress(live: LiveJob) -> None:
    """Create or advance the job's progress bar, behind the round."""
    job, done, shown = live.runner.job, len(live.runner.records), _shown(live)
    total = job.plan.plan.rounds
    share, text = 100.0 * done / max(total, 1), f"{job.id}: {done} of {total} rounds"
    shown.progress.offer(partial(_progress, shown, f"{job.id}-progress", share, text))


async def publish_rounds(live: LiveJob) -> None:
    """Publish the newest round, behind the next: by site where one is missing, all when scored.

    Both tables are published at an evaluation and after the last round.
    """
    job, records = live.runner.job, live.runner.records
    if not records:
        return
    last = records[-1]
    milestone = last.score is not None or last.number == job.plan.plan.rounds
    if milestone or round_tables.somebody_missing(last):
        _shown(live).rounds.offer(
            partial(_tables, job.id, last, list(records) if milestone else [])
        )


async def publish_end(live: LiveJob, state: str, reason: str = "") -> None:
    """Publish how the job ended: both tables, and a summary with a picture.

    ``state`` is the word for it ("completed", "aborted", …). The report of the job is written into
    the coordinator's folder. Waits for the server a few seconds, and no longer.
    """
    runner, shown = live.runner, _shown(live)
    job, records = runner.job, list(runner.records)
    await asyncio.gather(shown.progress.settle(), shown.rounds.settle())
    report = await asyncio.to_thread(write_job_report, runner, state, reason)
    text = round_tables.summary(job, records, runner.model_digest.hex()[:12], state, reason, report)
    if records:
        picture = svg_url(rounds_chart(f"{job.id}, round by round", records, len(job.labels)))
        text += f"\n\n![rounds of {job.id}]({picture})\n"
    wanted: list[Callable[[], Awaitable[None]]] = [
        partial(create, MarkdownArtifact(key=f"{job.id}-summary", markdown=text))
    ]
    if records:
        wanted.append(partial(_tables, job.id, records[-1], records))
    for publish in wanted:  # one after the other: an SQLite server takes one writer
        if not await attempt(publish, PATIENCE / 2):
            return


def write_job_report(runner: JobRunner, state: str, reason: str) -> str:
    """Write the HTML report of a job beside its checkpoint; where it is in the folder, or empty.

    It says what a coordinator knows: no site's budget is in it.
    """
    from fedflow.report.html import write_report  # plotly is slow to load

    job = runner.job
    facts = {
        "job": job.id,
        "plan": job.plan.model_dump(mode="json"),
        "sites": [
            {"index": i, "label": label, "fingerprint": job.roster[i].fingerprint()}
            for i, label in job.labels.items()
        ],
        "rounds": [record.facts() for record in runner.records],
        "stopped_early": None if state == "completed" else reason or state,
    }
    path: Path = runner.coordinator.state_path(job.id).with_name("report.html")
    try:
        return str(write_report(facts, path).relative_to(runner.coordinator.path))
    except Exception:
        return ""  # a report is not worth a job


async def _progress(shown: _Shown, key: str, share: float, text: str) -> None:
    async with scrubbed_client() as client:
        if shown.bar is None:
            bar = ProgressArtifact(key=key, progress=share, description=text)
            shown.bar = (await bar.acreate(client)).id
        else:
            await aupdate_progress_artifact(shown.bar, share, text, client)


async def _tables(job: str, last: RoundRecord, records: list[RoundRecord]) -> None:
    rows = round_tables.site_rows(last)
    await create(
        TableArtifact(
            key=f"{job}-round",
            table=rows,
            description=f"Round {last.number} of {job}, site by site. What a site sent is masked;"
            " only the sum over sites was opened.",
        )
    )
    if records:
        await create(
            TableArtifact(
                key=f"{job}-rounds",
                table=round_tables.round_rows(records),
                description=f"Rounds of {job}. Scores are noised secure sums over held-out"
                " persons; ± is one standard error of that noise.",
            )
        )
