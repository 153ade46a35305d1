"""One order at a site: train while keys and shares travel, charge, then send and answer.

The order of steps is the guarantee: the ledger entry and the exact bytes are durable before
anything masked leaves, and every durable fact is claimed before the message it permits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fedflow.anchors import Anchors
from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.errors import Violation
from fedflow.exchange import Exchange, layout
from fedflow.history import Missing
from fedflow.privacy.ledger import Ledger, SqliteFacts
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.context import RoundContext
from fedflow.site.admission import Admitted
from fedflow.site.ahead import Ahead
from fedflow.site.anchoring import Anchoring
from fedflow.site.following import Following
from fedflow.site.kept import Kept
from fedflow.site.mailbox import OVER_SECONDS, Missed, fetch, in_thread, is_there, send
from fedflow.site.release import make_release
from fedflow.site.spool import Spool
from fedflow.site.trainer import Trained
from fedflow.site.work import Trainer, Work
from fedflow.wire.messages import Kind, Order

__all__ = ["Missed", "Progress", "SiteServices", "Trainer", "take_part"]

Progress = Callable[[int, str], Awaitable[None]]


@dataclass(frozen=True)
class SiteServices:
    """What a round needs from its site. ``folder`` is the site's own: spool, history, anchors."""

    identity: Identity
    exchange: Exchange
    ledger: Ledger
    facts: SqliteFacts
    trainer: Trainer
    poll_seconds: float
    folder: Path
    spot_check_chunks: int = 1

    @property
    def spool(self) -> Path:
        """Where releases wait until they have left."""
        return self.folder / "spool"

    @property
    def history(self) -> Path:
        """Where the site remembers the histories of jobs."""
        return self.folder / "history"

    def anchoring(self, job: Admitted) -> Anchoring:
        """What holds the ledgers of a job's sites against all that their keys signed."""
        return Anchoring(self.ledger, Anchors(self.folder / "anchors.sqlite"), job)


class _Legs:
    """The messages of one order, to and from the coordinator."""

    def __init__(self, services: SiteServices, job: Admitted, order: Order) -> None:
        self._services, self._job, self._order = services, job, order
        self._until = order.deadline / 1000
        self._limit = layout.leg_limit(len(job.manifest.roster))
        # Once one of them is there, nobody will answer this order any more.
        self._later = (layout.order(job.id, order.sequence + 1), layout.end(job.id))

    async def over(self) -> bool:
        """Whether this order was given up: its time, another order, or the end of the job."""
        if time.time() >= self._until:
            return True
        for key in self._later:
            if await is_there(self._services.exchange, key, layout.MAX_SEALED_BYTES):
                return True
        return False

    async def down(self, leg: str, site: int | None = None) -> bytes:
        """The coordinator's message of a leg; Missed when it does not come."""
        return await fetch(
            self._services.exchange,
            layout.down(self._job.id, self._order.sequence, leg, site),
            until=self._until,
            poll=self._services.poll_seconds,
            limit=self._limit,
            over=self.over,
            unless=self._later,
        )

    async def trained(self, training: asyncio.Future[Trained]) -> Trained:
        """What training gives; Missed as soon as the order was given up: nobody waits for it."""
        while True:
            await asyncio.wait({training}, timeout=OVER_SECONDS)
            if training.done():
                return training.result()
            if await self.over():
                raise Missed("masked")

    async def up(self, leg: str, payload: bytes) -> None:
        """Put this site's message of a leg."""
        await self._put(
            layout.up(self._job.id, self._order.sequence, leg, self._job.index), payload
        )

    async def send_release(self, spool: Spool, header: bytes) -> None:
        """Put every chunk, then the header that names them: who sees it finds them all."""
        for index in range(spool.chunks):
            key = layout.vector(self._job.id, self._order.sequence, self._job.index, index)
            await self._put(key, spool.get(index))
            await asyncio.sleep(0)
        await self.up("masked", header)

    async def _put(self, key: str, payload: bytes) -> None:
        poll = self._services.poll_seconds
        await send(self._services.exchange, key, payload, until=self._until, poll=poll)


async def take_part(
    services: SiteServices,
    job: Admitted,
    order: Order,
    data: Path,
    progress: Progress,
    following: Following,
    *,
    vouches: bool,
    ahead: Ahead,
) -> None:
    """Carry out one admitted order. Raises Missed, Refusal, Violation or TrainingFailed.

    ``vouches`` is what ``following`` said of the order's model. In an asynchronous job ``ahead``
    trains from one order to another, and the site comes only when it is done.
    """
    legs = _Legs(services, job, order)
    client = _client(services, job, order, vouches)
    work = Work(
        services.trainer,
        job,
        order,
        data=data,
        model=await _model(services, order, following),
        kept=Kept(services.folder, job),
        ahead=ahead,
    )
    try:
        if work.comes_late:
            await legs.trained(work.trained)
        await legs.up("advert", client.advertise())
        await progress(order.round, "training")
        shares = _shares(client, await legs.down("roster"), work)
        if not vouches:
            following.adopt(order)
        await legs.up("shares", shares)
        client.on_delivery(await legs.down("delivery", job.index))
        vector, own = await legs.trained(work.trained)
    finally:
        await work.stop()

    if await legs.over():
        raise Missed("masked")  # before anything is charged for it
    weighed = replace(job, weight=job.weight * work.weight)
    spool, header = make_release(services.spool, services.ledger, weighed, order, client, vector)
    work.released()
    del vector
    try:
        services.anchoring(job).position()  # remembers that the entry was made
        await legs.send_release(spool, header)
        await progress(order.round, "masked")
        survivors = await legs.down("survivors")
        await legs.up("signed", client.on_survivors(survivors))
        await legs.up("unmask", client.on_consistency(await legs.down("consistency")))
        services.ledger.settle(client.context, len(client.survivors))
        work.summed(own)
    except (Exception, asyncio.CancelledError):
        spool.remove()
        raise
    spool.remove()
    await progress(order.round, "done")


async def _model(services: SiteServices, order: Order, following: Following) -> bytes:
    """The order's model; an exchange that is down is asked again while the order is open."""
    while True:
        try:
            return await in_thread(services.exchange, following.due_model, order)
        except Missing:
            raise Missed("model") from None
        except OSError:
            if time.time() >= order.deadline / 1000:
                raise Missed("model") from None
            await asyncio.sleep(max(services.poll_seconds, 0.2))


def _shares(client: SecAggClient, roster: bytes, work: Work) -> bytes:
    try:
        return client.on_roster(roster)
    except Violation as error:
        if work.comes_late and error.code == "left-out":
            raise Missed("roster") from None  # the buffer was full: in the next one, then
        raise


def _client(services: SiteServices, job: Admitted, order: Order, vouches: bool) -> SecAggClient:
    anchoring = services.anchoring(job)
    return SecAggClient(
        round_ctx=RoundContext.of(order).digest(),
        index=job.index,
        identity=services.identity,
        # Only who was asked: no accomplice of the server can come in beside a group.
        roster={s: key for s, key in job.roster.items() if order.invites(s)},
        # From the plan this site admitted: its policy refused anything weaker than its own floor.
        colluders=job.plan.cohort.colluders,
        minimum=job.plan.cohort.minimum,
        dimension=order.dimension,
        ledger=anchoring.position(),
        check_positions=anchoring.check_cohort,
        facts=services.facts,
        csprng=Csprng.from_os(),
        suite_number=job.plan.suite,
        bits=job.plan.bits(Kind(order.kind)),
        vouches=vouches,
    )
