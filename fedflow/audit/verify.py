"""``fedflow audit verify``: one call over a folder, one report.

Layout below the folder: ``exchange/jobs/<job>/…`` (see :mod:`fedflow.exchange.layout`),
``audit/roster.json`` (the pinned keys) and ``audit/ledgers/*.jsonl`` (exported ledgers, see
:mod:`fedflow.audit.exports`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fedflow.audit.anchors import Anchors
from fedflow.audit.coverage import check_age, check_elsewhere, check_strays
from fedflow.audit.evidence import JobEvidence, open_folder
from fedflow.audit.exports import read_ledgers
from fedflow.audit.findings import AuditReport, JobRow, Recorder
from fedflow.audit.ledgers import check_epsilon, check_releases
from fedflow.audit.opened import check_opened
from fedflow.audit.replay import Replay
from fedflow.audit.roster import PinnedRoster, load_roster
from fedflow.audit.spending import check_prices
from fedflow.exchange import Exchange


def verify_folder(
    folder: str | os.PathLike[str],
    *,
    roster: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> AuditReport:
    """Verify everything a folder holds, offline; writes nothing.

    ``roster`` is the auditor's own copy of the pinned keys; without it the folder's copy is used,
    which proves consistency but not who the parties are. ``progress`` is told each step's name.
    Raises InputError only when there is nothing to audit; bad contents become findings.
    """
    root = Path(folder)
    exchange = open_folder(root)
    pinned = load_roster(Path(roster) if roster is not None else root / "audit" / "roster.json")
    own = roster is not None
    ledgers = root / "audit" / "ledgers"
    return verify_exchange(exchange, pinned, ledgers, own_keys=own, progress=progress)


def verify_exchange(
    exchange: Exchange,
    pinned: PinnedRoster,
    exports: Path,
    *,
    own_keys: bool,
    progress: Callable[[str], None] = lambda step: None,
) -> AuditReport:
    """Verify every job in an exchange against pinned keys and the ledgers in a folder.

    ``own_keys`` says that ``pinned`` did not come from where the records came from.
    """
    recorder = Recorder(own_keys=own_keys)
    recorder.labels = pinned.labels
    progress("ledgers")
    ledgers = read_ledgers(exports, pinned, recorder)
    jobs: list[JobEvidence] = []
    anchors = Anchors(ledgers, pinned, recorder)
    for name in exchange.list("jobs"):
        progress(f"job {name}")
        with recorder.examining("manifest", f"job {name}", 0):
            job = Replay(exchange, pinned, recorder).run(name)
            if job is None:
                continue
            jobs.append(job)
            recorder.jobs.append(_row(job, pinned))
            anchors.check(exchange, job)
            check_releases(job, ledgers, pinned, recorder)
            check_opened(job, ledgers, recorder)
            check_strays(exchange, job, recorder)
    check_age(jobs, ledgers, recorder)
    check_elsewhere(jobs, ledgers, recorder)
    progress("ε")
    check_epsilon(ledgers, recorder)
    check_prices(ledgers, recorder)
    return recorder.report()


def _row(job: JobEvidence, roster: PinnedRoster) -> JobRow:
    return JobRow(
        job.id,
        job.plan.plan.name,
        tuple(roster.labels[site] for site in job.roster),
        job.plan.cohort.minimum,
        job.plan.cohort.colluders,
        job.plan.plan.rounds,
        sum(found.transcript is not None for found in job.rounds),
        len(job.rounds),
        job.outcome,
    )
