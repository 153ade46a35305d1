"""What the Prefect UI shows beside the task graph: progress and a table of rounds.

Only what is public about a round: who took part, times, bytes, and the noised score.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.artifacts import (
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)

from fedflow.orchestration.tasks import LiveJob

_PROGRESS: dict[str, UUID] = {}


async def publish_progress(live: LiveJob) -> None:
    """Create or advance the job's progress bar."""
    job, done = live.runner.job, len(live.runner.records)
    share = 100.0 * done / job.plan.plan.rounds
    text = f"{done} of {job.plan.plan.rounds} rounds"
    if job.id in _PROGRESS:
        await aupdate_progress_artifact(_PROGRESS[job.id], progress=share, description=text)
    else:
        created = await acreate_progress_artifact(
            progress=share, key=f"{job.id}-progress", description=text
        )
        _PROGRESS[job.id] = UUID(str(created))


def table_of(live: LiveJob) -> list[dict[str, Any]]:
    """The rounds so far, one row each."""
    return [
        {
            "round": r.number,
            "sites in the sum": len(r.sites),
            "dropped": ", ".join(r.dropped),
            "refused": ", ".join(f"{site}: {why}" for site, why in r.refused.items()),
            "AUC (noised)": "" if r.auc is None else f"{r.auc:.3f} ± {r.auc_stderr:.3f}",
            "seconds": round(r.seconds, 2),
            "training seconds": round(r.training_seconds, 2),
            "KB per site": round(sum(r.bytes.values()) / max(len(r.bytes), 1) / 1024, 1),
        }
        for r in live.runner.records
    ]


async def publish_rounds(live: LiveJob) -> None:
    """Publish the table of rounds: at every evaluation, and after the last round."""
    record, job = live.runner.records[-1], live.runner.job
    if record.auc is None and record.number != job.plan.plan.rounds:
        return
    await acreate_table_artifact(
        table=table_of(live),
        key=f"{job.id}-rounds",
        description=f"Rounds of {job.id}. Scores are noised secure sums over held-out persons.",
    )
