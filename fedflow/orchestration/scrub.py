"""Take result metadata out of API responses before Prefect's models parse them.

Parsing a Prefect state imports a module that the server names (its data's ``picklelib``), and
reading its result unpickles. Nobody in fedflow needs a state's data, so every key ``data``
disappears from every response: a narrower match could be dodged by spelling or content type. This
is a second wall: the first is that no process that talks to Prefect holds anything of value.

No request goes elsewhere than to the server that was named, either: a redirect would carry it, and
for a web socket the credential, to any address that this machine can reach.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import PREFECT_API_URL
from websockets.asyncio.client import connect

from fedflow.errors import Refusal

MAX_RESPONSE = 2_000_000  # bytes, after decompression


class Unusable(httpx.DecodingError, httpx.TransportError):
    """An answer nobody can use. Prefect's loops treat it like a connection that broke."""


@contextmanager
def answers() -> Iterator[None]:
    """Within it, an answer that Prefect's models or code cannot take is :class:`Unusable`.

    Prefect ends the worker, and every session it follows, for one malformed answer.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as exc:
        raise Unusable(f"an API response is malformed: {type(exc).__name__}") from None


def without_data(value: Any) -> Any:
    """A copy of JSON ``value`` without any object member called ``data``, at any depth."""
    if isinstance(value, dict):
        return {key: without_data(item) for key, item in value.items() if key != "data"}
    if isinstance(value, list):
        return [without_data(item) for item in value]
    return value


async def drop_state_data(response: httpx.Response) -> None:
    """Response hook for httpx: bound the size, then scrub whatever the content claims to be."""
    if 300 <= response.status_code < 400:
        await response.aclose()
        raise Unusable(
            "the Prefect server answered with a redirect, and none is followed: set "
            "PREFECT_API_URL to its final address",
            request=response.request,
        )
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_RESPONSE:
            await response.aclose()
            raise Unusable("an API response is too large", request=response.request)
        parts.append(part)
    try:
        scrubbed = json.dumps(without_data(json.loads(b"".join(parts)))).encode()
    except (ValueError, RecursionError):
        scrubbed = b""  # not JSON: nothing we could use
    response._content = scrubbed
    response.headers["content-type"] = "application/json"


async def pace_retries(response: httpx.Response) -> None:
    """Response hook for httpx: how long to wait is decided here, not by the server.

    A Prefect server on SQLite answers 503 for the milliseconds in which another client writes, and
    beside a job of short rounds to most requests. Prefect's client would try six times and wait 2,
    4, 8... seconds, or for as long as a header says; a session was opened half a minute late.
    """
    response.headers.pop("prefect-maintenance", None)
    response.headers.pop("retry-after", None)
    if response.status_code in _RETRIED:
        tries = response.request.extensions.get(_TRIES, 0)
        response.request.extensions[_TRIES] = tries + 1
        response.headers["retry-after"] = str(min(_FIRST_WAIT * 2**tries, _LONGEST_WAIT))
        if tries < _MORE_TRIES:
            response.headers["prefect-maintenance"] = "true"  # its client does not count this one


_RETRIED = (429, 502, 503)
_TRIES = "fedflow-tries"
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 1.0  # seconds
_MORE_TRIES = 24  # beside those that Prefect's client counts: half a minute in all
_HOOKS = (drop_state_data, pace_retries)


def refuse_redirects() -> None:
    """No client of Prefect's in this process follows one, over HTTP or a web socket."""
    never = property(lambda _: False, lambda _, __: None)
    for kind in (PrefectHttpxAsyncClient, PrefectHttpxSyncClient):
        kind.follow_redirects = never  # type: ignore[assignment]
    # its answer: the error to raise, in place of the address to go to
    connect.process_redirect = lambda _, exc: exc  # type: ignore[assignment, method-assign]


refuse_redirects()


def everywhere() -> None:
    """Scrub every client that this process makes from now on, Prefect's own included."""
    plain = PrefectClient.__init__

    def scrubbed(self: PrefectClient, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        install(self)

    PrefectClient.__init__ = scrubbed  # type: ignore[method-assign]


def install(client: PrefectClient) -> None:
    """Scrub everything ``client`` receives from now on. Fails where Prefect has no such hook."""
    hooks = client._client.event_hooks
    hooks["response"].extend(hook for hook in _HOOKS if hook not in hooks["response"])
    client._client.event_hooks = hooks
    if not set(_HOOKS) <= set(client._client.event_hooks["response"]):
        raise RuntimeError("this version of Prefect does not take the response scrubber")


@asynccontextmanager
async def scrubbed_client() -> AsyncIterator[PrefectClient]:
    """A Prefect client whose every response is scrubbed, from the first one on.

    Raises Refusal "no-prefect-server" where PREFECT_API_URL is not set: Prefect would quietly start
    a server of its own, and nobody would ever look there.
    """
    if not PREFECT_API_URL.value():
        raise Refusal("no-prefect-server", "set PREFECT_API_URL to your Prefect server's API")
    client = get_client()
    install(client)
    async with client:
        yield client
