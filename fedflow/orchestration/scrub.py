"""Take result metadata out of API responses before Prefect's models parse them.

Parsing a Prefect state imports a module that the server names (its data's ``picklelib``), and
reading its result unpickles. Nobody in fedflow needs a state's data, so every key ``data``
disappears from every response: a narrower match could be dodged by spelling or content type. This
is a second wall: the first is that no process that talks to Prefect holds anything of value.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import PREFECT_API_URL

from fedflow.errors import Refusal

MAX_RESPONSE = 2_000_000  # bytes, after decompression


def without_data(value: Any) -> Any:
    """A copy of JSON ``value`` without any object member called ``data``, at any depth."""
    if isinstance(value, dict):
        return {key: without_data(item) for key, item in value.items() if key != "data"}
    if isinstance(value, list):
        return [without_data(item) for item in value]
    return value


async def drop_state_data(response: httpx.Response) -> None:
    """Response hook for httpx: bound the size, then scrub whatever the content claims to be."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_RESPONSE:
            await response.aclose()
            raise httpx.DecodingError("an API response is too large", request=response.request)
        parts.append(part)
    try:
        scrubbed = json.dumps(without_data(json.loads(b"".join(parts)))).encode()
    except (ValueError, RecursionError):
        scrubbed = b""  # not JSON: nothing we could use
    response._content = scrubbed
    response.headers["content-type"] = "application/json"


async def pace_retries(response: httpx.Response) -> None:
    """Response hook for httpx: how long to wait is decided here, not by the server.

    A Prefect server on SQLite answers 503 for the milliseconds in which another client writes;
    Prefect's client would wait 2, 4, 8... seconds, or for as long as a header says.
    """
    response.headers.pop("prefect-maintenance", None)
    response.headers.pop("retry-after", None)
    if response.status_code in _RETRIED:
        tries = response.request.extensions.get(_TRIES, 0)
        response.request.extensions[_TRIES] = tries + 1
        response.headers["retry-after"] = str(_FIRST_WAIT * 3**tries)


_RETRIED = (429, 502, 503)
_TRIES = "fedflow-tries"
_FIRST_WAIT = 0.25  # seconds; five retries reach half a minute
_HOOKS = (drop_state_data, pace_retries)


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
