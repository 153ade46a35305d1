"""What sites put for one order: taken one message at a time, and what became of each site.

A look lists the folders of a leg and of refusals once, whatever the number of sites, and reads what
is new. Where reading is a request over a network, messages are read side by side, and each is taken
when it is there: one site's large vector holds up nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from fedflow.coordinator.job import Job
from fedflow.errors import FedflowError, Violation
from fedflow.exchange import Exchange, base, layout
from fedflow.secagg.positions import ROLLBACK
from fedflow.secagg.server import SecAggServer
from fedflow.secagg.vectors import chunk_count, chunk_words, packed_size
from fedflow.wire.messages import STOPPED, Decline, Kind, Order, leaves_job
from fedflow.wire.sealed import unseal

#: Messages read at once over a network, and how much of each vector is held in memory meanwhile.
SIDE_BY_SIDE, IN_MEMORY = 16, 1 << 20
#: How long a leg that everybody awaited has answered waits for what is still being read (seconds).
READING_SECONDS = 2.0


@dataclass(frozen=True)
class SiteAnswer:
    """What became of a site in a round: ``masked``, ``refused``, ``dropped``, ``resting``; why."""

    outcome: str
    code: str = ""
    reason: str = ""
    seconds: float = 0.0


class Inbox:
    """The messages of one order, fed to the round's :class:`SecAggServer`."""

    def __init__(
        self,
        exchange: Exchange,
        job: Job,
        order: Order,
        server: SecAggServer,
        expected: set[int],
        notify: Callable[[str, int], None],
    ) -> None:
        self._exchange, self._job, self._order = exchange, job, order
        self._expected = expected
        self._server, self._notify = server, notify
        self._bits = job.plan.bits(Kind(order.kind))
        self._limit = layout.leg_limit(len(job.roster))
        self._asked = {str(site): site for site in order.asked(job.roster)}
        self.started = time.monotonic()
        self.declined: dict[int, Decline] = {}
        self.taken: set[tuple[str, int]] = set()
        self.bytes: dict[int, int] = {}
        self.masked_at: dict[int, float] = {}
        self._blamed: set[int] = set()
        self._reading: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._failure: BaseException | None = None
        self._room = asyncio.Semaphore(SIDE_BY_SIDE)
        loop = asyncio.get_running_loop()
        self.answers: dict[int, asyncio.Future[SiteAnswer]] = {
            site: loop.create_future() for site in job.roster
        }

    def waiting(self, leg: str, wanted: Iterable[int]) -> set[int]:
        """Which of ``wanted`` have neither answered the leg nor declined nor been dropped."""
        answered = {site for at, site in self.taken if at == leg}
        return set(wanted) - answered - set(self.declined) - self._blamed

    async def look(self, leg: str) -> None:
        """Take what is new of a leg, and refusals; over a network, begin to. Outages only delay."""
        if self._failure is not None:  # of reading, and none that a site or the exchange explains
            raise self._failure
        try:
            there = await self._sites_in(leg)
            declining = await self._sites_in("decline") - there - set(self.declined)
        except OSError:
            return
        work = [(leg, site) for site in sorted(there)]
        work += [("decline", site) for site in sorted(declining)]
        for at, site in work:
            if (leg, site) in self.taken or site in self._blamed or (at, site) in self._reading:
                continue
            if self._exchange.remote:
                task = asyncio.create_task(self._read(at, site))
                self._reading[at, site] = task
                task.add_done_callback(partial(self._has_read, (at, site)))
            else:
                await self._take(at, site)
                if at == "masked":
                    await asyncio.sleep(0)  # a whole vector has been read

    async def pause(self, seconds: float) -> None:
        """Wait, or less once something that was being read is there."""
        if self._reading:
            await asyncio.wait(
                self._reading.values(), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        else:
            await asyncio.sleep(seconds)

    async def finish(self, seconds: float) -> None:
        """The leg is over: take what is being read already, if that needs no more ``seconds``."""
        if self._reading and seconds > 0:
            await asyncio.wait(self._reading.values(), timeout=min(seconds, READING_SECONDS))

    def give_up(self) -> None:
        """Nothing is read any more."""
        for task in self._reading.values():
            task.cancel()

    async def _sites_in(self, leg: str) -> set[int]:
        """Sites of the roster that put something for a leg."""
        folder = layout.ups(self._job.id, self._order.sequence, leg)
        try:
            listed = await base.names(self._exchange, folder)
        except FedflowError:
            return set()  # not a listing: nobody's fault, and nothing to go by
        return {self._asked[name] for name in listed if name in self._asked}

    def _has_read(self, place: tuple[str, int], task: asyncio.Task[None]) -> None:
        del self._reading[place]
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()

    async def _read(self, leg: str, site: int) -> None:
        async with self._room:
            await self._take(leg, site)

    async def _take(self, leg: str, site: int) -> None:
        """Take one site's message. A bad one drops the site; an exchange outage only delays."""
        try:
            if leg == "decline":
                return await self._take_decline(site)
            data = await base.get(self._exchange, self._key(leg, site), self._limit)
            if data is None:
                return None
            sizes: list[int] = [len(data)]
            with contextlib.ExitStack() as stack:
                chunk = None
                if leg == "masked":
                    chunk = self._counting(await self._vector(site, stack), sizes)
                where, sender = self._server.receive(data, chunk)
            if (where, sender) != (leg, site):
                raise Violation("wrong-place", "the message belongs to another place", site)
        except OSError:
            return None  # the exchange is down: the deadline decides
        except FedflowError as error:
            self._blamed.add(site)
            known = error.code == ROLLBACK
            reason = error.message if known else "its message was not valid"
            self.settle(site, SiteAnswer("dropped", error.code, reason))
            return None
        self.taken.add((leg, site))
        self.bytes[site] = self.bytes.get(site, 0) + sum(sizes)
        if where == "masked":
            self.masked_at[site] = time.monotonic()
            seconds = self.masked_at[site] - self.started
            self.settle(site, SiteAnswer("masked", seconds=seconds))
        return self._notify(leg, site)

    def _key(self, leg: str, site: int) -> str:
        return layout.up(self._job.id, self._order.sequence, leg, site)

    @staticmethod
    def _counting(chunk: Callable[[int], bytes], sizes: list[int]) -> Callable[[int], bytes]:
        def counted(index: int) -> bytes:
            packed = chunk(index)
            sizes.append(len(packed))
            return packed

        return counted

    async def _vector(self, site: int, stack: contextlib.ExitStack) -> Callable[[int], bytes]:
        """Where the chunks of a site's vector are read; over a network they are fetched first."""
        if not self._exchange.remote:
            return lambda index: self._chunk(site, index)
        spool = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        stack.enter_context(spool)
        places: list[tuple[int, int]] = []
        for index in range(chunk_count(self._order.dimension)):
            packed = await asyncio.to_thread(self._chunk, site, index)
            places.append((spool.tell(), len(packed)))
            spool.write(packed)

        def chunk(index: int) -> bytes:
            start, size = places[index]
            spool.seek(start)
            return spool.read(size)

        return chunk

    def _chunk(self, site: int, index: int) -> bytes:
        """One chunk of a masked vector. Sites put them before the header, so it must be there."""
        key = layout.vector(self._job.id, self._order.sequence, site, index)
        size = packed_size(chunk_words(self._order.dimension, index), self._bits)
        packed = self._exchange.get(key, size)
        if packed is None:
            raise Violation("missing-chunk", f"chunk {index} of its masked vector is not there")
        return packed

    async def _take_decline(self, site: int) -> None:
        try:
            data = await base.get(
                self._exchange, self._key("decline", site), layout.MAX_SEALED_BYTES
            )
            if data is None:
                return
            decline = unseal(Decline, data, self._job.roster[site])
        except FedflowError:
            return  # not this site's word: it does not count against the site
        if (decline.order, decline.site) != (self._order.digest(), site):
            return  # an older refusal, put here by somebody
        self.declined[site] = decline
        self.settle(site, SiteAnswer("refused", decline.code, decline.reason))
        self._notify("decline", site)

    def settle(self, site: int, answer: SiteAnswer) -> None:
        """Say what became of a site. The first word counts."""
        if not self.answers[site].done():
            self.answers[site].set_result(answer)

    def answered(self, leg: str) -> int:
        """How many sites have answered a leg."""
        return sum(at == leg for at, _ in self.taken)

    def resting(self, site: int) -> SiteAnswer | None:
        """How a site rests that nothing is to be had from now; None for one that does not.

        It was not asked. Or rounds are asynchronous, it is expected and has not answered at all:
        then it is taken to train for a later round.
        """
        if str(site) not in self._asked:
            return SiteAnswer("resting", "not-invited", "not asked this time")
        heard = ("advert", site) in self.taken or site in self.declined or site in self._blamed
        if self._job.plan.is_asynchronous and site in self._expected and not heard:
            return SiteAnswer("resting", "busy", "still training")
        return None

    def drop_the_silent(self) -> None:
        """Settle every site that sent no masked update in time: it rests, or is dropped."""
        late = SiteAnswer("dropped", "dropped", "no masked update before the deadline")
        absent = SiteAnswer("dropped", "absent", "not present")
        for site in self.answers:
            came = site in self._expected or ("advert", site) in self.taken
            self.settle(site, self.resting(site) or (late if came else absent))

    def abort(self) -> None:
        """Settle every site that has no answer when the round ends without a sum."""
        aborted = SiteAnswer("dropped", "round-aborted", "the round was aborted")
        for site in self.answers:
            self.settle(site, self.resting(site) or aborted)

    def still_there(self) -> set[int]:
        """Sites to wait for in the next order: in this sum, resting, or refused just this order."""
        in_sum = set(self._server.survivors) or {s for leg, s in self.taken if leg == "advert"}
        resting = {site for site in self._expected if self.resting(site)}
        stopped = {site for site, d in self.declined.items() if d.code == STOPPED}
        staying = set(self.declined) - self.left_the_job() - stopped
        return (in_sum - set(self.declined) - self._blamed) | resting | staying

    def left_the_job(self) -> set[int]:
        """Sites whose refusal of this order ended their part in the job."""
        declined = self.declined.items()
        return {
            site
            for site, d in declined
            if leaves_job(self._order.kind, d.code) or site in d.rolled_back
        }
