"""Putting, getting and listing for a member whose request was verified."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Refusal
from fedflow.exchange.places import Kind, Place, folder, place, size_limit
from fedflow.relay.access import JobFacts, Party, why_not_read, why_not_see, why_not_write
from fedflow.relay.answer import Answer
from fedflow.relay.limits import Limits, Memory, Quotas
from fedflow.relay.membership import Jobs, Members
from fedflow.relay.store import Store
from fedflow.relay.waiting import Waiting
from fedflow.wire.membership import Role

#: Reads a body of so many bytes whose hash was signed.
ReadBody = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True)
class Wait:
    """How long to wait for an object, and for what not any longer."""

    seconds: float
    unless: tuple[str, ...]
    gone: asyncio.Future[None]


class Objects:
    """The store behind the rules of :mod:`fedflow.relay.access`."""

    def __init__(
        self,
        store: Store,
        authority: PublicKey,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.limits, self._clock = store, limits, clock
        self.members = Members(store, authority)
        self.jobs = Jobs(store, authority)
        self.quotas = Quotas(store, limits)
        self.memory = Memory(limits.memory_bytes)
        self.waiting = Waiting()
        self.removing: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def put(
        self, party: Party, key: str, size: int, digest: bytes, read_body: ReadBody
    ) -> bool:
        """Store an object of ``size`` bytes; whether it is new. :class:`Answer` when refused.

        All that can be known without the bytes is checked before they are read.
        """
        where = _place(key)
        job = await self._job(where)
        reason = why_not_write(party, where, job, digest.hex())
        if reason is not None:
            raise Answer(403, "not-yours", reason)
        most = size_limit(where.kind, len(job.sites) if job else 0)
        if size > most:
            raise Answer(413, "too-long", f"a {where.kind.value} has at most {most} bytes")
        if where.job in self.removing:
            raise Answer(503, "busy", "this job is being removed", 5)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            there = await self.store.size(key)
            if there is not None and there != size:
                raise Answer(409, "already-put", "this name is taken by other bytes")
            with self.memory.hold(size):
                if there is not None:
                    await self.store.put(key, await read_body())
                    return False
                if job is None and party.role is Role.COORDINATOR and where.kind is Kind.BLOB:
                    self.quotas.unannounced(party.key, where.job)
                async with self.quotas.room(where, size):
                    payload = await read_body()
                    self.members.party(party.key, self._clock())  # it may have been revoked
                    self._check(where, payload)
                    await self.store.put(key, payload)
            self._stored(where, payload)
            self.waiting.announce(key)
        return True

    async def get(self, party: Party, key: str, wait: Wait | None) -> bytes | None:
        """The object, None when it is not there (in time). :class:`Answer` when refused."""
        size = await self.size(party, key, wait)
        if size is None:
            return None
        with self.memory.hold(size):
            return await self.store.get(key)

    async def size(self, party: Party, key: str, wait: Wait | None = None) -> int | None:
        """Bytes of the object, None when it is not there (in time)."""
        keys = (key, *(wait.unless if wait else ()))
        for name in keys:
            await self._may_read(party, name)
        size = await self.store.size(key)
        if size is None and wait is not None and wait.seconds > 0:
            await self._wait(party, keys, wait)
            size = await self.store.size(key)
            self.members.party(party.key, self._clock())  # it may have been revoked meanwhile
        if size is not None and not await self._may_read(party, key):
            return None
        return size

    async def names(self, party: Party, prefix: str) -> list[str]:
        """What is in a folder, as far as the member may see it."""
        job = folder(prefix)
        if job is None:
            raise Answer(403, "no-such-place", "this is no folder of an exchange")
        names = await self.store.names(prefix)
        if prefix == "jobs":
            return [name for name in names if await self._sees(party, name)]
        if job and not await self._sees(party, job):
            if await self.jobs.facts(job) is None:
                return []
            raise Answer(403, "not-yours", "the job's manifest does not list this member")
        return names

    async def _sees(self, party: Party, job: str) -> bool:
        return why_not_see(party, await self._facts(job)) is None

    async def _may_read(self, party: Party, key: str) -> bool:
        """Answer 403 when it may not; False when there is no such job, so nothing to read."""
        where = _place(key)
        job = await self._job(where)
        if job is None and where.job and party.role is Role.SITE:
            return False
        reason = why_not_read(party, where, job)
        if reason is not None:
            raise Answer(403, "not-yours", reason)
        return True

    async def _wait(self, party: Party, keys: tuple[str, ...], wait: Wait) -> None:
        many = party.role in (None, Role.COORDINATOR)
        most = self.limits.coordinator_waits if many else self.limits.site_waits

        async def there() -> bool:
            for key in keys:
                if await self.store.size(key) is not None:
                    return True
            return False

        with self.waiting.place(party.key, most) as free:
            if not free:
                raise Answer(429, "too-many", f"at most {most} requests of a member wait", 1)
            await self.waiting.until(keys, there, wait.seconds, wait.gone)

    async def _job(self, where: Place) -> JobFacts | None:
        return await self._facts(where.job) if where.job else None

    async def _facts(self, job: str) -> JobFacts | None:
        return await self.jobs.facts(job)

    def _check(self, where: Place, payload: bytes) -> None:
        """What the authority signs is held against its key before it is stored."""
        now = self._clock()
        if where.kind is Kind.MANIFEST:
            manifest, facts = self.jobs.read(where.job, payload)
            if facts.not_after <= now:
                raise Refusal("expired", "the manifest's time is over")
            self.members.check_manifest(manifest, now)
        elif where.kind is Kind.ROSTER:
            roster = self.members.read(payload, where.sequence)
            newest = self.members.roster
            if newest is not None and roster.serial <= newest.serial:
                raise Refusal("stale-roster", f"roster {newest.serial} is newer than this one")

    def _stored(self, where: Place, payload: bytes) -> None:
        if where.kind is Kind.MANIFEST:
            self.quotas.announced(where.job)
        elif where.kind is Kind.ROSTER:
            self.members.adopt(self.members.read(payload))


def _place(key: str) -> Place:
    found = place(key)
    if found is None:
        raise Answer(403, "no-such-place", "this is no place of an exchange")
    return found
