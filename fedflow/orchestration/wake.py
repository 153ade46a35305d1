"""Wake the worker when a run is scheduled: any message of the server's event stream is a hint.

Nothing in a message is read. Prefect's own subscriber would parse each, keep half a million ids and
poll as often as the server likes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from prefect._internal.websockets import websocket_connect
from prefect.events.clients import events_out_socket_from_api_url
from prefect.events.filters import EventFilter, EventOccurredFilter
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL
from websockets import Subprotocol
from websockets.asyncio.client import ClientConnection

MAX_MESSAGE = 1 << 20  # bytes; more closes the connection
HELLO_SECONDS = 20.0
AT_MOST_EVERY = 1.0  # seconds between two hints, however many messages come


async def hints(wanted: EventFilter) -> AsyncGenerator[None, None]:
    """One hint after each message about ``wanted``, at most one a second; ends with the connection.

    Raises whatever a connection raises: the caller tries again later.
    """
    url = events_out_socket_from_api_url(str(PREFECT_API_URL.value()))
    connection = websocket_connect(
        url,
        subprotocols=[Subprotocol("prefect")],
        max_size=MAX_MESSAGE,
        max_queue=4,
        compression=None,
    )
    async with connection as stream:
        async with asyncio.timeout(HELLO_SECONDS):
            await _subscribe(stream, wanted)
        now = asyncio.get_running_loop().time
        while True:
            await stream.recv(decode=False)
            with suppress(TimeoutError):  # what has come by now is the same hint
                async with asyncio.timeout(0):
                    while True:
                        await stream.recv(decode=False)
            last = now()
            yield
            await asyncio.sleep(last + AT_MOST_EVERY - now())


async def _subscribe(stream: ClientConnection, wanted: EventFilter) -> None:
    token = PREFECT_API_AUTH_STRING.value() or PREFECT_API_KEY.value()
    await stream.send(json.dumps({"type": "auth", "token": token}))
    await stream.recv(decode=False)  # a server that refuses closes the connection
    today = datetime.now(UTC)
    wanted.occurred = EventOccurredFilter(
        since=today - timedelta(minutes=1), until=today + timedelta(days=365)
    )
    body = {"type": "filter", "filter": wanted.model_dump(mode="json")}
    await stream.send(json.dumps(body))
