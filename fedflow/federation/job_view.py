"""How a coordinator's jobs stand, from what is signed in the exchange and its own checkpoints."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from fedflow.coordinator.job import Job, load_job
from fedflow.coordinator.records import Checkpoint, RoundRecord
from fedflow.coordinator.settings import CoordinatorFolder
from fedflow.errors import FedflowError
from fedflow.exchange import layout
from fedflow.wire.messages import Countersignature, JobEnd
from fedflow.wire.sealed import unseal


@dataclass(frozen=True)
class JobView:
    """One job. ``state`` is waiting, running, an outcome, expired, or invalid with a ``reason``."""

    job: str
    state: str
    reason: str = ""
    plan: str = ""
    rounds: int = 0
    planned: int = 0
    sites: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    created: int = 0
    not_after: int = 0
    metric: str = "auc"
    score: float | None = None
    model: str = ""
    records: tuple[RoundRecord, ...] = field(default=())

    def facts(self) -> dict[str, Any]:
        """As plain values, for machines."""
        return asdict(self)


def jobs_of(coordinator: CoordinatorFolder) -> list[str]:
    """The ids of all jobs in the exchange. OSError while it is down."""
    return coordinator.exchange.list("jobs")


def view(coordinator: CoordinatorFolder, name: str) -> JobView:
    """How the job ``name`` stands. InputError when there is none; OSError while it is down."""
    try:
        job = load_job(coordinator.exchange, name, coordinator.authority)
        if job.manifest.coordinator != coordinator.identity.public.raw:
            return JobView(name, "elsewhere", "the job is another coordinator's")
    except FedflowError as error:
        if error.code == "bad-input":
            raise
        return JobView(name, "invalid", error.message)
    path = coordinator.state_path(name)
    found = Checkpoint.load(path, job.digest) if path.exists() else None
    records = tuple(found.records) if found else ()
    state, reason = _state(coordinator, job)
    scores = [r.score for r in records if r.score is not None]
    return JobView(
        name,
        state,
        reason,
        job.plan.plan.name,
        len(records),
        job.plan.plan.rounds,
        tuple(job.labels.values()),
        _joined(coordinator, job),
        job.manifest.created,
        job.manifest.not_after,
        job.plan.evaluation.metric,
        scores[-1] if scores else None,
        (found.state.model if found else job.manifest.initial_model).hex(),
        records,
    )


def _state(coordinator: CoordinatorFolder, job: Job) -> tuple[str, str]:
    exchange = coordinator.exchange
    try:
        data = exchange.get(layout.end(job.id), layout.MAX_SEALED_BYTES)
        end = None if data is None else unseal(JobEnd, data, coordinator.identity.public)
        if end is not None and end.manifest == job.digest:
            return end.outcome, end.reason
    except FedflowError:
        pass  # anybody may have left it there
    if time.time() > job.manifest.not_after:
        return "expired", "its time is over and nobody ended it"
    ordered = bool(layout.sequences(exchange.list(layout.rounds(job.id))))
    return ("running", "") if ordered else ("waiting", "")


def _joined(coordinator: CoordinatorFolder, job: Job) -> tuple[str, ...]:
    joined = []
    for index, key in job.roster.items():
        try:
            at = layout.countersign(job.id, index)
            data = coordinator.exchange.get(at, layout.MAX_SEALED_BYTES)
            bound = None if data is None else unseal(Countersignature, data, key)
        except FedflowError:
            continue
        if bound is not None and (bound.manifest, bound.site) == (job.digest, index):
            joined.append(job.labels[index])
    return tuple(joined)
