"""Requests that wait for an object that is not there yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

#: How often the store is asked meanwhile: another relay may have put the object (seconds).
LOOK_SECONDS = 1.0


class Waiting:
    """Wakes who waits for a key as soon as it is put here."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}
        self._held: dict[bytes, int] = {}
        self.closed = False

    @property
    def count(self) -> int:
        """How many requests wait now."""
        return sum(self._held.values())

    def announce(self, key: str) -> None:
        """The object is there."""
        for event in self._events.get(key, ()):
            event.set()

    def close(self) -> None:
        """Wake everybody, and let nobody wait any more."""
        self.closed = True
        for events in self._events.values():
            for event in events:
                event.set()

    @contextlib.contextmanager
    def place(self, member: bytes, most: int) -> Iterator[bool]:
        """One of a member's ``most`` places to wait at; False when all are taken."""
        free = self._held.get(member, 0) < most
        if not free:
            yield False
            return
        self._held[member] = self._held.get(member, 0) + 1
        try:
            yield True
        finally:
            self._held[member] -= 1
            if not self._held[member]:
                del self._held[member]

    async def until(
        self,
        keys: Iterable[str],
        there: Callable[[], Awaitable[bool]],
        seconds: float,
        gone: asyncio.Future[None],
    ) -> None:
        """Return when ``there`` says so, after ``seconds``, when ``gone``, or when closed."""
        event, keys = asyncio.Event(), tuple(keys)
        for key in keys:
            self._events.setdefault(key, set()).add(event)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        try:
            while True:
                event.clear()  # before looking: what is put meanwhile sets it again
                if await there() or self.closed or gone.done() or loop.time() >= end:
                    return
                put: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
                pause = min(LOOK_SECONDS, end - loop.time())
                try:
                    await asyncio.wait(
                        {put, gone}, timeout=pause, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    put.cancel()
        finally:
            for key in keys:
                self._events[key].discard(event)
                if not self._events[key]:
                    del self._events[key]
