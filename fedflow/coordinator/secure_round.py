"""One order seen from the coordinator: move messages, close legs, end with one sum.

The state machine of :mod:`fedflow.secagg.server` decides what is right; this file only decides how
long to wait. It waits for the sites believed present, and takes whoever else answers in time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedflow.coordinator.job import Job
from fedflow.coordinator.settings import CoordinatorFolder
from fedflow.errors import FedflowError, Violation
from fedflow.exchange import layout
from fedflow.secagg.context import RoundContext
from fedflow.secagg.server import Outcome, SecAggServer
from fedflow.wire.messages import Decline, Order, leaves_job
from fedflow.wire.sealed import seal, unseal

_SMALL = 1 << 20


@dataclass(frozen=True)
class SiteAnswer:
    """What became of one site in a round: ``masked``, ``refused`` or ``dropped``; why; when."""

    outcome: str
    code: str = ""
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class RoundResult:
    """A finished secure sum."""

    outcome: Outcome
    transcript: bytes
    seconds: float
    training_seconds: float
    bytes_by_site: dict[int, int]
    answers: dict[int, SiteAnswer]


class SecureRound:
    """Runs one signed order to its sum. ``expected`` are the site indices believed present."""

    def __init__(
        self,
        coordinator: CoordinatorFolder,
        job: Job,
        order: Order,
        expected: set[int],
        notify: Callable[[str, int], None] = lambda leg, site: None,
    ) -> None:
        self._coordinator, self._job, self.order = coordinator, job, order
        self._expected = set(expected)
        self._notify = notify
        self._server = SecAggServer(
            round_ctx=RoundContext.of(order).digest(),
            roster=job.roster,
            colluders=job.plan.cohort.colluders,
            minimum=job.plan.cohort.minimum,
            dimension=order.dimension,
        )
        self._max_masked = 4 * order.dimension + 4096
        self._declined: dict[int, Decline] = {}
        self._blamed: dict[int, Violation] = {}
        self._taken: set[tuple[str, int]] = set()
        self._bytes: dict[int, int] = {}
        self._masked_at: dict[int, float] = {}
        self._started = 0.0
        loop = asyncio.get_running_loop()
        self.answers: dict[int, asyncio.Future[SiteAnswer]] = {
            site: loop.create_future() for site in job.roster
        }

    def publish(self) -> None:
        """Sign and publish the order. From now on sites may answer."""
        self._started = time.monotonic()
        data = seal(self._coordinator.identity, self.order)
        self._coordinator.exchange.put(layout.order(self._job.id, self.order.sequence), data)

    async def run(self) -> RoundResult:
        """All legs to the sum; Aborted with a reason when too few sites are left in one."""
        try:
            return await self._legs()
        except BaseException:
            for site in self.answers:
                self._settle(site, SiteAnswer("dropped", "round-aborted", "the round was aborted"))
            raise

    async def _legs(self) -> RoundResult:
        wait = self._job.plan.deadlines
        server = self._server
        await self._collect("advert", self._expected, wait.leg_seconds)
        self._down("roster", server.close_adverts())
        await self._collect("shares", set(server.missing()), wait.leg_seconds)
        for site, delivery in server.close_shares().items():
            self._down("delivery", delivery, site)
        self._notify("delivery", -1)
        left = wait.round_seconds - (time.monotonic() - self._started)
        await self._collect("masked", set(server.missing()), max(left, wait.leg_seconds))
        self._drop_the_silent()
        self._down("survivors", server.close_masked())
        await self._collect("signed", set(server.missing()), wait.leg_seconds)
        self._down("consistency", server.close_signatures())
        await self._collect("unmask", set(server.missing()), wait.leg_seconds)
        outcome = server.close_unmask()
        sealed = seal(self._coordinator.identity, outcome.transcript)
        key = layout.transcript(self._job.id, self.order.sequence)
        self._coordinator.exchange.put(key, sealed)
        arrivals = [self._masked_at[s] for s in outcome.survivors]
        return RoundResult(
            outcome=outcome,
            transcript=sealed,
            seconds=time.monotonic() - self._started,
            training_seconds=max(arrivals) - self._started,
            bytes_by_site=dict(self._bytes),
            answers={site: future.result() for site, future in self.answers.items()},
        )

    async def _collect(self, leg: str, wanted: set[int], seconds: float) -> None:
        """Take this leg's messages until all ``wanted`` answered, declined, or time is up."""
        until = time.monotonic() + seconds
        while True:
            for site in self._job.roster:
                self._take(leg, site)
            left = {s for s in wanted if (leg, s) not in self._taken} - set(self._declined)
            if not (left - set(self._blamed)) or time.monotonic() >= until:
                return
            await asyncio.sleep(self._coordinator.settings.poll_seconds)

    def _take(self, leg: str, site: int) -> None:
        if (leg, site) in self._taken or site in self._blamed:
            return
        exchange, name, sequence = self._coordinator.exchange, self._job.id, self.order.sequence
        try:
            limit = self._max_masked if leg == "masked" else _SMALL
            data = exchange.get(layout.up(name, sequence, leg, site), limit)
            if data is None:
                self._take_decline(site)
                return
            where, sender = self._server.receive(data)
            if (where, sender) != (leg, site):
                raise Violation("wrong-place", "the message belongs to another place", site)
        except OSError:
            return  # the exchange is down: the deadline decides
        except FedflowError as error:
            self._blamed[site] = Violation(error.code, error.message, site)
            self._settle(site, SiteAnswer("dropped", error.code, "its message was not valid"))
            return
        self._taken.add((leg, site))
        self._bytes[site] = self._bytes.get(site, 0) + len(data)
        if where == "masked":
            self._masked_at[site] = time.monotonic()
            seconds = self._masked_at[site] - self._started
            self._settle(site, SiteAnswer("masked", seconds=seconds))
        self._notify(leg, site)

    def _take_decline(self, site: int) -> None:
        if site in self._declined:
            return
        key = layout.up(self._job.id, self.order.sequence, "decline", site)
        try:
            data = self._coordinator.exchange.get(key, _SMALL)
            if data is None:
                return
            decline = unseal(Decline, data, self._job.roster[site])
        except FedflowError:
            return  # not this site's word: it does not count against the site
        if (decline.order, decline.site) != (self.order.digest(), site):
            return  # an older refusal, put here by somebody
        self._declined[site] = decline
        self._settle(site, SiteAnswer("refused", decline.code, decline.reason))
        self._notify("decline", site)

    def _drop_the_silent(self) -> None:
        for site in self.answers:
            if site not in self._expected and ("advert", site) not in self._taken:
                self._settle(site, SiteAnswer("dropped", "absent", "not present"))
            else:
                reason = "no masked update before the deadline"
                self._settle(site, SiteAnswer("dropped", "dropped", reason))

    def still_there(self) -> set[int]:
        """Sites to wait for in the next order: in this sum, or refused just this order."""
        in_sum = set(self._server.survivors) or {s for leg, s in self._taken if leg == "advert"}
        staying = set(self._declined) - self.left_the_job()
        return (in_sum - set(self._declined) - set(self._blamed)) | staying

    def left_the_job(self) -> set[int]:
        """Sites whose refusal of this order ended their part in the job."""
        declined = self._declined.items()
        return {site for site, d in declined if leaves_job(self.order.kind, d.code)}

    def refusals(self) -> dict[int, str]:
        """Codes of the sites that declined this order."""
        return {site: decline.code for site, decline in self._declined.items()}

    def _settle(self, site: int, answer: SiteAnswer) -> None:
        if not self.answers[site].done():
            self.answers[site].set_result(answer)

    def _down(self, leg: str, data: bytes, site: int | None = None) -> None:
        key = layout.down(self._job.id, self.order.sequence, leg, site)
        self._coordinator.exchange.put(key, data)
