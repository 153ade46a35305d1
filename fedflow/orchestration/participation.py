"""Who took part in a job's rounds, by what coordinator and sites have signed. Knows no Prefect."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field

from fedflow.coordinator.job import Job, load_job
from fedflow.coordinator.records import Checkpoint
from fedflow.coordinator.settings import CoordinatorFolder
from fedflow.crypto.identity import PublicKey
from fedflow.errors import FedflowError
from fedflow.exchange import Exchange, layout
from fedflow.history import Published
from fedflow.orchestration.round_tables import Rows
from fedflow.orders import read_order
from fedflow.wire.messages import Decline, Order
from fedflow.wire.sealed import unseal


@dataclass
class Participation:
    """One job: its orders, the sums that were opened, and each site's part in them by label.

    ``lost`` are sites that were in a cohort and neither in its sum nor refused. ``seconds`` and
    ``bytes`` are the coordinator's own, and empty where it kept none.
    """

    job: Job
    orders: int = 0
    sums: int = 0
    took_part: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0
    bytes: Counter[str] = field(default_factory=Counter)


def read_job(coordinator: CoordinatorFolder, name: str) -> Participation | None:
    """A job of this coordinator; None for anything else under that name. OSError while it is down.

    Transcripts are verified as a site verifies them; what does not hold is left out.
    """
    exchange = coordinator.exchange
    try:
        job = load_job(exchange, name, coordinator.authority)
    except FedflowError:
        return None
    found, key = Participation(job), PublicKey(job.manifest.coordinator)
    for sequence in layout.sequences(exchange.list(layout.rounds(name))):
        order = read_order(exchange, name, job.digest, key, sequence)
        if order is not None:
            found.orders += 1
            _sum(exchange, found, order, key, _refusals(exchange, found, order))
    path = coordinator.state_path(name)
    checkpoint = None
    with contextlib.suppress(FedflowError, ValueError, KeyError, TypeError):
        checkpoint = Checkpoint.load(path, job.digest)
    for record in checkpoint.records if checkpoint else ():
        found.seconds += record.seconds
        found.bytes.update(record.bytes)
    return found


def _sum(
    exchange: Exchange, found: Participation, order: Order, key: PublicKey, refused: set[int]
) -> None:
    published, labels = Published(exchange, found.job, order), found.job.labels
    try:
        transcript = published.transcript(key)
        published.verify(transcript)
    except FedflowError:
        return  # no sum, or none that holds
    found.sums += 1
    found.took_part.update(labels[site] for site in transcript.survivors)
    known = {*transcript.survivors, *refused}
    found.lost.update(labels[site] for site in transcript.cohort if site not in known)


def _refusals(exchange: Exchange, found: Participation, order: Order) -> set[int]:
    refused = set()
    for site, key in found.job.roster.items():
        where = layout.up(found.job.id, order.sequence, "decline", site)
        try:
            data = exchange.get(where, layout.MAX_SEALED_BYTES)
            if data is None:
                continue
            decline = unseal(Decline, data, key)
        except FedflowError:
            continue  # not this site's word
        if (decline.order, decline.site) == (order.digest(), site):
            found.refused[found.job.labels[site], decline.code] += 1
            refused.add(site)
    return refused


def job_rows(jobs: list[Participation]) -> Rows:
    """One row per job, the oldest first."""
    return [
        {
            "job": one.job.id,
            "plan": one.job.plan.plan.name,
            "sites": len(one.job.roster),
            "rounds planned": one.job.plan.plan.rounds,
            "orders": one.orders,
            "sums": one.sums,
            "sites per sum": round(one.took_part.total() / one.sums, 1) if one.sums else 0.0,
            "lost": one.lost.total(),
            "refused": one.refused.total(),
            "seconds": round(one.seconds, 1),
            "MB sent": round(one.bytes.total() / 2**20, 2),
        }
        for one in sorted(jobs, key=lambda one: (one.job.manifest.created, one.job.id))
    ]


def site_rows(jobs: list[Participation]) -> Rows:
    """One row per site over all jobs, with the codes of its refusals."""
    labels = sorted({label for one in jobs for label in one.job.labels.values()})
    rows: Rows = []
    for site in labels:
        codes: Counter[str] = Counter()
        for one in jobs:
            for (label, code), times in one.refused.items():
                if label == site:
                    codes[code] += times
        rows.append(
            {
                "site": site,
                "jobs": sum(site in one.job.labels.values() for one in jobs),
                "in the sum": sum(one.took_part[site] for one in jobs),
                "lost": sum(one.lost[site] for one in jobs),
                "refused": codes.total(),
                "reasons": ", ".join(f"{code} × {n}" for code, n in codes.most_common()),
                "MB sent": round(sum(one.bytes[site] for one in jobs) / 2**20, 2),
            }
        )
    return rows
