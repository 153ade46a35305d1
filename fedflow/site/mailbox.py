"""A site's patience with the exchange: wait for an object, put one until it is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fedflow.errors import Violation
from fedflow.exchange import Exchange, base

T = TypeVar("T")

#: The longest one request waits at a relay (seconds): a connection that died meanwhile shows then.
LONGEST_WAIT = 20.0
#: How often a waiting site looks whether its order was given up meanwhile (seconds).
OVER_SECONDS = 0.5


class Missed(Exception):
    """The round went on without this site, or ended. Says at which leg."""


async def _never() -> bool:
    return False


async def aside(exchange: Exchange, work: Coroutine[Any, Any, T]) -> T:
    """Do ``work``, which calls the exchange directly, without holding up the event loop."""
    if exchange.remote:
        return await asyncio.to_thread(asyncio.run, work)
    return await work


async def fetch(
    exchange: Exchange,
    key: str,
    *,
    until: float,
    poll: float,
    limit: int,
    over: Callable[[], Awaitable[bool]] = _never,
    unless: Sequence[str] = (),
) -> bytes:
    """Wait for an object; Missed when it is not there at ``until`` (seconds since the epoch).

    Missed earlier once ``over`` says that nobody will put it any more; that one of ``unless`` is
    there is a reason to ask it.
    """
    first = time.monotonic()
    look = first + OVER_SECONDS
    while True:
        began, left = time.monotonic(), until - time.time()
        try:
            data = await base.wait(
                exchange,
                key,
                limit,
                seconds=min(left, LONGEST_WAIT),
                poll=base.pause(exchange, poll, began - first),
                unless=unless,
            )
        except OSError:  # the exchange is down: that is only a delay
            data = None
            await asyncio.sleep(max(poll, 0.2) if exchange.remote else poll)
        if data is not None:
            return data
        if left <= 0:
            raise Missed(key)
        if time.monotonic() >= look or (unless and exchange.remote):
            if await over():
                raise Missed(key)
            look = time.monotonic() + OVER_SECONDS
        if exchange.remote and time.monotonic() - began < poll:
            await asyncio.sleep(poll)  # an exchange that does not wait is not asked in a circle


async def in_thread(exchange: Exchange, call: Callable[..., T], *arguments: Any) -> T:
    """``call(*arguments)``, which asks the exchange, without holding up the event loop."""
    if exchange.remote:
        return await asyncio.to_thread(call, *arguments)
    return call(*arguments)


async def is_there(exchange: Exchange, key: str, limit: int) -> bool:
    """Whether ``key`` is taken, by whatever bytes; False while the exchange is down."""
    try:
        return await base.get(exchange, key, limit) is not None
    except Violation:
        return True
    except OSError:
        return False


async def send(exchange: Exchange, key: str, payload: bytes, *, until: float, poll: float) -> None:
    """Put an object, again and again the same bytes while the exchange is down."""
    while True:
        try:
            await base.put(exchange, key, payload)
            return
        except OSError:
            if time.time() >= until:
                raise Missed(key) from None
            await asyncio.sleep(max(poll, 0.2))
