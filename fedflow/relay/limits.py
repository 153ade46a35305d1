"""How much of everything: quotas per member and job, requests per second, bytes in memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from dataclasses import dataclass

from fedflow.errors import Refusal
from fedflow.exchange import layout
from fedflow.exchange.places import OF_SITE, Place, place
from fedflow.relay.store import Store

#: Members, addresses and jobs that are remembered at once; the longest unused are forgotten first.
MOST_REMEMBERED = 65_536
#: A bucket holds what its rate gives in so many seconds.
BURST = 20.0
#: Jobs without a manifest that one coordinator may have first models for.
MOST_UNANNOUNCED = 16


@dataclass(frozen=True)
class Limits:
    """All limits of one relay. ``site_*`` and ``coordinator_*`` are per job."""

    site_bytes: int = 64 << 30
    site_objects: int = 500_000
    coordinator_bytes: int = 256 << 30
    coordinator_objects: int = 2_000_000
    site_rate: float = 200.0  # requests per second
    coordinator_rate: float = 4000.0
    stranger_rate: float = 5.0
    site_waits: int = 64
    coordinator_waits: int = 16_384
    memory_bytes: int = 2 << 30
    body_seconds: float = 10.0  # and what the slowest accepted link needs on top
    body_bytes_per_second: int = 32 << 10
    wait_seconds: float = 25.0


class Rates:
    """A token bucket per key, forgotten when it is full again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def delay(self, key: Hashable, rate: float, *, take: bool = True) -> float:
        """Take one from the bucket; 0 when there was one, else the seconds until there will be.

        Without ``take`` only look.
        """
        now, most = self._clock(), BURST * rate
        left, then = self._buckets.pop(key, (most, now))
        left = min(most, left + (now - then) * rate)
        enough = left >= 1.0
        self._buckets[key] = (left - 1.0 if enough and take else left, now)
        if len(self._buckets) > MOST_REMEMBERED:
            self._buckets.popitem(last=False)
        return 0.0 if enough else (1.0 - left) / rate


class Memory:
    """Bytes of bodies and answers held at once."""

    def __init__(self, most: int) -> None:
        self._most, self.held = most, 0

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes; Refusal ``busy`` when there is no room. One always fits alone."""
        if self.held and self.held + size > self._most:
            raise Refusal("busy", "the relay is busy with other large objects; try again")
        self.held += size
        try:
            yield
        finally:
            self.held -= size


class Quotas:
    """What is stored by each member of each job: by a site, or by its coordinator's side.

    Counted from the names in the store, so it is the same after a restart.
    """

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store, self._limits = store, limits
        self._used: dict[str, dict[int | None, list[int]]] = {}
        self._counting: dict[str, asyncio.Lock] = {}
        self._unannounced: dict[bytes, set[str]] = {}

    def unannounced(self, key: bytes, job: str) -> None:
        """A coordinator puts a first model, no manifest yet; Refusal ``quota`` for too many."""
        jobs = self._unannounced.setdefault(key, set())
        if job not in jobs and len(jobs) >= MOST_UNANNOUNCED:
            raise Refusal("quota", "too many jobs have a first model and no manifest")
        jobs.add(job)

    def announced(self, job: str) -> None:
        """The job has its manifest."""
        for jobs in self._unannounced.values():
            jobs.discard(job)

    @contextlib.asynccontextmanager
    async def room(self, where: Place, size: int) -> AsyncIterator[None]:
        """Count one new object of ``size`` bytes; Refusal ``quota`` when it is too much.

        Not counted after all when storing it fails.
        """
        used = await self._usage(where.job)
        slot = where.site if where.kind in OF_SITE else None
        count = used.setdefault(slot, [0, 0])
        limits = self._limits
        most = (limits.coordinator_objects, limits.coordinator_bytes)
        if slot is not None:
            most = (limits.site_objects, limits.site_bytes)
        if count[0] + 1 > most[0] or count[1] + size > most[1]:
            raise Refusal(
                "quota",
                f"this member's share of the job is full ({most[0]} objects, {most[1]} bytes)",
            )
        count[0], count[1] = count[0] + 1, count[1] + size
        try:
            yield
        except BaseException:
            count[0], count[1] = count[0] - 1, count[1] - size
            raise

    def forget(self, job: str) -> None:
        """The job was removed."""
        self._used.pop(job, None)
        self.announced(job)

    async def _usage(self, job: str) -> dict[int | None, list[int]]:
        async with self._counting.setdefault(job, asyncio.Lock()):
            if job not in self._used:
                used: dict[int | None, list[int]] = {}
                root = layout.job(job) if job else layout.federation_rosters()
                for key, size, _ in await self._store.below(root):
                    where = place(key)
                    if where is not None:
                        slot = where.site if where.kind in OF_SITE else None
                        count = used.setdefault(slot, [0, 0])
                        count[0], count[1] = count[0] + 1, count[1] + size
                self._used[job] = used
        self._counting.pop(job, None)
        return self._used[job]
