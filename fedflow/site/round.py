"""One order at a site: train while keys and shares travel, charge, then mask and send.

The order of steps is the guarantee: the ledger entry and the exact bytes are durable before the
masked vector leaves, and every durable fact is claimed before the message it permits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.errors import Refusal, Violation
from fedflow.exchange import Exchange, layout
from fedflow.exchange.base import get_blob
from fedflow.privacy.ledger import Ledger, SqliteFacts
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.context import RoundContext
from fedflow.secagg.quantise import encode_integers, integer_limit
from fedflow.site.admission import Admitted
from fedflow.wire.messages import Kind, Order

MAX_LEG_BYTES = 1 << 20

#: How often a waiting site looks whether its order was given up meanwhile (seconds).
OVER_SECONDS = 0.5

Progress = Callable[[int, str], Awaitable[None]]


class Missed(Exception):
    """The round went on without this site, or ended. Says at which leg."""


class Trainer(Protocol):
    """Whatever trains and evaluates: a process of its own in a real site."""

    async def run(
        self, task: str, *, workload: str, data: Path, plan: bytes, model: bytes = b""
    ) -> npt.NDArray[Any]:
        """The vector of ``train`` (float32) or ``evaluate`` (int64), none of ``check``."""


@dataclass(frozen=True)
class SiteServices:
    """What a round needs from its site."""

    identity: Identity
    exchange: Exchange
    ledger: Ledger
    facts: SqliteFacts
    trainer: Trainer
    poll_seconds: float


def _never() -> bool:
    return False


async def fetch(
    exchange: Exchange,
    key: str,
    *,
    until: float,
    poll: float,
    limit: int = MAX_LEG_BYTES,
    over: Callable[[], bool] = _never,
) -> bytes:
    """Wait for an object; Missed when it is not there at ``until`` (seconds since the epoch).

    Missed earlier once ``over`` says that nobody will put it any more.
    """
    look = time.monotonic() + OVER_SECONDS
    while True:
        try:
            data = exchange.get(key, limit)
        except OSError:  # the exchange is down: that is only a delay
            data = None
        if data is not None:
            return data
        if time.time() >= until:
            raise Missed(key)
        if time.monotonic() >= look:
            if over():
                raise Missed(key)
            look = time.monotonic() + OVER_SECONDS
        await asyncio.sleep(poll)


def is_there(exchange: Exchange, key: str) -> bool:
    """Whether ``key`` is taken, by whatever bytes; False while the exchange is down."""
    try:
        return exchange.get(key, MAX_LEG_BYTES) is not None
    except Violation:
        return True
    except OSError:
        return False


async def send(exchange: Exchange, key: str, payload: bytes, *, until: float, poll: float) -> None:
    """Put an object, again and again the same bytes while the exchange is down."""
    while True:
        try:
            exchange.put(key, payload)
            return
        except OSError:
            if time.time() >= until:
                raise Missed(key) from None
            await asyncio.sleep(max(poll, 0.2))


async def take_part(
    services: SiteServices, job: Admitted, order: Order, data: Path, progress: Progress
) -> None:
    """Carry out one admitted order. Raises Missed, Refusal, Violation or TrainingFailed."""
    kind, until = Kind(order.kind), order.deadline / 1000
    exchange, poll, name = services.exchange, services.poll_seconds, job.manifest.job

    def over() -> bool:
        # A coordinator that ordered the next sum, or ended the job, has given up this one.
        later = (layout.order(name, order.sequence + 1), layout.end(name))
        return time.time() >= until or any(is_there(exchange, key) for key in later)

    async def down(leg: str, site: int | None) -> bytes:
        key = layout.down(name, order.sequence, leg, site)
        return await fetch(exchange, key, until=until, poll=poll, over=over)

    async def up(leg: str, payload: bytes) -> None:
        key = layout.up(name, order.sequence, leg, job.index)
        await send(exchange, key, payload, until=until, poll=poll)

    model = get_blob(exchange, layout.blob(name, order.model), order.model, layout.MAX_MODEL_BYTES)
    if model is None:
        raise Missed("model")
    client = _client(services, job, order)
    await up("advert", client.advertise())
    await progress(order.round, "training")
    training = asyncio.ensure_future(
        services.trainer.run(
            kind.word,
            workload=job.plan.plan.workload,
            data=data,
            plan=job.manifest.plan,
            model=model,
        )
    )
    try:
        roster = await down("roster", None)
        await up("shares", client.on_roster(roster))
        client.on_delivery(await down("delivery", job.index))
        words = _words(job, kind, await training)
    finally:
        if not training.done():
            training.cancel()
            await asyncio.gather(training, return_exceptions=True)

    if over():
        raise Missed("masked")  # before anything is charged for it
    masked = client.mask(words)
    services.ledger.reserve(
        job.account(kind),
        job.event(kind),
        context=client.context,
        job=name,
        manifest=job.digest,
        round=order.round,
        attempt=order.attempt,
        purpose=kind.word,
        release=masked,
    )
    await up("masked", masked)
    await progress(order.round, "masked")

    survivors = await down("survivors", None)
    await up("signed", client.on_survivors(survivors))
    await up("unmask", client.on_consistency(await down("consistency", None)))
    services.ledger.settle(client.context, len(client.survivors))
    await progress(order.round, "done")


def _client(services: SiteServices, job: Admitted, order: Order) -> SecAggClient:
    return SecAggClient(
        round_ctx=RoundContext.of(order).digest(),
        index=job.index,
        identity=services.identity,
        roster=job.roster,
        # From the plan this site admitted: its policy refused anything weaker than its own floor.
        colluders=job.plan.cohort.colluders,
        minimum=job.plan.cohort.minimum,
        dimension=order.dimension,
        facts=services.facts,
        csprng=Csprng.from_os(),
    )


def _words(job: Admitted, kind: Kind, vector: npt.NDArray[np.generic]) -> npt.NDArray[np.uint32]:
    """The vector as ring elements: the update quantised, statistics as they are."""
    if vector.shape != (job.dimension(kind),):
        raise Violation("bad-shape", "local training gave a vector of another length")
    sites = len(job.manifest.roster)
    if kind is Kind.EVALUATE:
        return encode_integers(vector.astype(np.int64), integer_limit(sites))
    if not np.isfinite(vector).all():
        raise Refusal("non-finite", "local training gave a value that is not finite")
    return job.plan.quantiser(sites).encode(vector.astype(np.float64), Csprng.from_os())
