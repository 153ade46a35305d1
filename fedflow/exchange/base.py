"""The mailbox interface, and one in memory for tests and simulation."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

from fedflow.errors import Misuse, Refusal, Violation

#: Largest object accepted when a reader states no smaller limit (bytes).
MAX_OBJECT_BYTES = 1 << 31
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class Exchange(Protocol):
    """Put-once named objects.

    ``put`` of the same bytes again is a no-op (a retry); other bytes under a taken name are a
    Violation ``already-put``. ``get`` answers None for a name nobody put. OSError means that the
    exchange cannot be reached now. ``remote`` says that each call is a request over a network.
    """

    @property
    def remote(self) -> bool:
        """Whether calls take so long that an event loop makes them in a thread."""
        return False

    def put(self, key: str, payload: bytes) -> None:
        """Store ``payload`` under ``key``, atomically and at most once."""

    def get(self, key: str, limit: int = MAX_OBJECT_BYTES) -> bytes | None:
        """The payload, or None. Violation when over ``limit`` bytes, truncated or damaged."""

    def list(self, prefix: str) -> list[str]:
        """The names directly below the folder ``prefix``, sorted."""


def check_key(key: str) -> str:
    """``key`` if it is a plain relative path without ``..`` or odd characters; else Misuse."""
    if len(key) > 512 or not _KEY.fullmatch(key):
        raise Misuse(f"{key!r} is not a valid exchange name")
    return key


def get_blob(exchange: Exchange, key: str, digest: bytes, limit: int) -> bytes | None:
    """A content-addressed object; Violation when its SHA-256 is not ``digest``."""
    payload = exchange.get(key, limit)
    if payload is not None and hashlib.sha256(payload).digest() != digest:
        raise Violation("wrong-digest", "a file in the exchange does not match its digest")
    return payload


async def put(exchange: Exchange, key: str, payload: bytes) -> None:
    """:meth:`Exchange.put` without holding up the event loop."""
    if exchange.remote:
        await asyncio.to_thread(exchange.put, key, payload)
    else:
        exchange.put(key, payload)


async def get(exchange: Exchange, key: str, limit: int = MAX_OBJECT_BYTES) -> bytes | None:
    """:meth:`Exchange.get` without holding up the event loop."""
    if exchange.remote:
        return await asyncio.to_thread(exchange.get, key, limit)
    return exchange.get(key, limit)


async def names(exchange: Exchange, prefix: str) -> list[str]:
    """:meth:`Exchange.list` without holding up the event loop."""
    if exchange.remote:
        return await asyncio.to_thread(exchange.list, prefix)
    return exchange.list(prefix)


#: The shortest time between two looks into an exchange on this machine (seconds).
SHORTEST_PAUSE = 0.002


def pause(exchange: Exchange, poll: float, waited: float) -> float:
    """Seconds until the next look, after ``waited`` of them: at most ``poll``.

    What is answered at once is then seen at once; a look into a folder costs next to nothing.
    """
    return poll if exchange.remote else min(poll, max(SHORTEST_PAUSE, waited / 4))


async def wait(
    exchange: Exchange,
    key: str,
    limit: int = MAX_OBJECT_BYTES,
    *,
    seconds: float,
    poll: float,
    unless: Sequence[str] = (),
) -> bytes | None:
    """Wait for an object; None when it is not there after ``seconds``.

    None earlier once one of ``unless`` is there, as far as the exchange can tell: a relay can, and
    holds the request until then. Any other exchange is looked at once, then after ``poll`` seconds.
    OSError as :meth:`Exchange.get`.
    """
    long_poll = getattr(exchange, "wait", None)
    if long_poll is not None:
        found: bytes | None = await long_poll(key, limit, seconds=seconds, unless=unless)
        return found
    data = await get(exchange, key, limit)
    if data is None:
        await asyncio.sleep(min(poll, max(seconds, 0.0)))
    return data


class MemoryExchange:
    """An exchange in one process."""

    remote = False

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, key: str, payload: bytes) -> None:
        """Store once."""
        if self.objects.setdefault(check_key(key), payload) != payload:
            raise Violation("already-put", f"{key} is taken by other bytes")

    def get(self, key: str, limit: int = MAX_OBJECT_BYTES) -> bytes | None:
        """Read back."""
        payload = self.objects.get(check_key(key))
        if payload is not None and len(payload) > limit:
            raise Violation("too-long", f"{key} has {len(payload)} bytes, at most {limit} allowed")
        return payload

    def list(self, prefix: str) -> list[str]:
        """Children of a folder."""
        start = check_key(prefix) + "/"
        return sorted({k[len(start) :].split("/")[0] for k in self.objects if k.startswith(start)})


def unreachable(error: OSError) -> Refusal:
    """What a command says when the exchange is down."""
    return Refusal("exchange-unavailable", f"the exchange cannot be reached now: {error}")
