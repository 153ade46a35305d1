"""One order seen from the coordinator: move messages, close legs, end with one sum.

The state machine of :mod:`fedflow.secagg.server` decides what is right; this file only decides how
long to wait. It waits for the sites believed present, and takes whoever else answers in time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedflow.coordinator.inbox import Inbox, SiteAnswer
from fedflow.coordinator.job import Job
from fedflow.coordinator.left_out import LeftOut
from fedflow.coordinator.settings import CoordinatorFolder
from fedflow.errors import Aborted
from fedflow.exchange import base, layout
from fedflow.secagg.context import RoundContext
from fedflow.secagg.server import Outcome, SecAggServer
from fedflow.secagg.vectors import CHUNK_WORDS, chunk_count, pack
from fedflow.wire.messages import Kind, Order
from fedflow.wire.sealed import seal

__all__ = ["RoundResult", "SecureRound", "SiteAnswer"]


@dataclass(frozen=True)
class RoundResult:
    """A finished secure sum. ``bytes_by_site`` counts messages and masked chunks."""

    outcome: Outcome
    transcript: bytes
    seconds: float
    training_seconds: float
    bytes_by_site: dict[int, int]
    answers: dict[int, SiteAnswer]


class SecureRound:
    """Runs one signed order to its sum. ``expected`` are the site indices believed present.

    ``left_out`` is the job's, and knows of this order from now on.
    """

    def __init__(
        self,
        coordinator: CoordinatorFolder,
        job: Job,
        order: Order,
        expected: set[int],
        left_out: LeftOut,
        notify: Callable[[str, int], None] = lambda leg, site: None,
    ) -> None:
        self._coordinator, self._job, self.order = coordinator, job, order
        self._expected = set(expected)
        self._notify = notify
        self._bits = job.plan.bits(Kind(order.kind))
        self._left_out = left_out
        left_out.begin()
        self._server = SecAggServer(
            round_ctx=RoundContext.of(order).digest(),
            roster={site: job.roster[site] for site in sorted(order.asked(job.roster))},
            colluders=job.plan.cohort.colluders,
            minimum=job.plan.cohort.minimum,
            dimension=order.dimension,
            suite_number=job.plan.suite,
            bits=self._bits,
            check_position=self._left_out.check,
        )
        self._inbox = Inbox(coordinator.exchange, job, order, self._server, self._expected, notify)

    @property
    def answers(self) -> dict[int, asyncio.Future[SiteAnswer]]:
        """What became of every site of the roster, as soon as that is known."""
        return self._inbox.answers

    def publish(self) -> None:
        """Sign and publish the order. From now on sites may answer."""
        self._inbox.started = time.monotonic()
        data = seal(self._coordinator.identity, self.order)
        self._coordinator.exchange.put(layout.order(self._job.id, self.order.sequence), data)

    async def run(self) -> RoundResult:
        """All legs to the sum; Aborted with a reason when too few sites are left in one."""
        try:
            return await self._legs()
        except BaseException:
            self._inbox.abort()
            raise
        finally:
            self._left_out.believe(self._inbox.declined.values())

    async def _legs(self) -> RoundResult:
        wait, server, inbox = self._job.plan.deadlines, self._server, self._inbox
        await self._collect("advert", self._expected, *self._patience())
        roster = server.close_adverts()
        self._left_out.remember(self._server.cohort)
        await self._down("roster", roster)
        await self._collect("shares", server.missing(), wait.leg_seconds)
        deliveries = server.close_shares().items()
        if self._coordinator.exchange.remote:  # side by side: each is a request
            await asyncio.gather(*(self._down("delivery", data, site) for site, data in deliveries))
        else:
            for site, delivery in deliveries:
                await self._down("delivery", delivery, site)
        self._notify("delivery", -1)
        left = wait.round_seconds - (time.monotonic() - inbox.started)
        await self._collect("masked", server.missing(), max(left, wait.leg_seconds))
        inbox.drop_the_silent()
        await self._down("survivors", server.close_masked())
        await self._collect("signed", server.missing(), wait.leg_seconds)
        await self._down("consistency", server.close_signatures())
        await self._collect("unmask", server.missing(), wait.leg_seconds)
        outcome = server.close_unmask()
        self._left_out.remember(outcome.cohort, outcome.survivors)
        transcript = await self._publish_outcome(outcome)
        arrivals = [inbox.masked_at[s] for s in outcome.survivors]
        return RoundResult(
            outcome=outcome,
            transcript=transcript,
            seconds=time.monotonic() - inbox.started,
            training_seconds=max(arrivals) - inbox.started,
            bytes_by_site=dict(inbox.bytes),
            answers={site: future.result() for site, future in self.answers.items()},
        )

    def _patience(self) -> tuple[float, int | None]:
        """How long a cohort is waited for, and how many sites are enough for one; None for all.

        In asynchronous rounds a site comes when it has trained.
        """
        plan = self._job.plan
        if not plan.is_asynchronous:
            return plan.deadlines.leg_seconds, None
        return plan.deadlines.round_seconds, plan.strategy.buffer

    async def _collect(
        self, leg: str, wanted: Iterable[int], seconds: float, enough: int | None = None
    ) -> None:
        """Take this leg's messages until all ``wanted`` answered, declined, or time is up.

        Or until ``enough`` sites answered.
        """
        began, wanted = time.monotonic(), set(wanted)
        until, poll = began + seconds, self._coordinator.settings.poll_seconds
        try:
            while True:
                await self._inbox.look(leg)
                now = time.monotonic()
                if not self._inbox.waiting(leg, wanted) or now >= until:
                    break
                if enough is not None and self._inbox.answered(leg) >= enough:
                    break
                exchange = self._coordinator.exchange
                await self._inbox.pause(min(base.pause(exchange, poll, now - began), until - now))
            await self._inbox.finish(until - now)
        finally:
            self._inbox.give_up()

    async def _publish_outcome(self, outcome: Outcome) -> bytes:
        """Put the sum's chunks, then the transcript that names them: who sees it finds them all."""
        name, sequence = self._job.id, self.order.sequence
        for index in range(chunk_count(outcome.sum.size)):
            part = outcome.sum[index * CHUNK_WORDS : (index + 1) * CHUNK_WORDS]
            await self._put(layout.total(name, sequence, index), pack(part, self._bits))
            await asyncio.sleep(0)
        sealed = seal(self._coordinator.identity, outcome.transcript)
        await self._put(layout.transcript(name, sequence), sealed)
        return sealed

    def still_there(self) -> set[int]:
        """Sites to wait for in the next order: in this sum, resting, or refused just this one."""
        return self._inbox.still_there()

    def left_the_job(self) -> set[int]:
        """Sites whose refusal of this order ended their part in the job."""
        return self._inbox.left_the_job()

    def refusals(self) -> dict[int, str]:
        """Codes of the sites that declined this order."""
        return {site: decline.code for site, decline in self._inbox.declined.items()}

    async def _down(self, leg: str, data: bytes, site: int | None = None) -> None:
        await self._put(layout.down(self._job.id, self.order.sequence, leg, site), data)

    async def _put(self, key: str, data: bytes) -> None:
        """Put an object, again and again for one leg's time while the exchange is down."""
        until = time.monotonic() + self._job.plan.deadlines.leg_seconds
        while True:
            try:
                return await base.put(self._coordinator.exchange, key, data)
            except OSError:
                if time.monotonic() >= until:
                    raise Aborted("exchange-down", "the exchange cannot be written to") from None
            await asyncio.sleep(max(self._coordinator.settings.poll_seconds, 0.2))
