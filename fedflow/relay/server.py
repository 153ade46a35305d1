"""The relay as a process: uvicorn, with time limits on connections that say nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Violation
from fedflow.exchange import layout
from fedflow.relay.app import make_app
from fedflow.relay.membership import Members
from fedflow.relay.metrics import RelayMetrics
from fedflow.relay.objects import Objects
from fedflow.relay.retention import keep_clean
from fedflow.telemetry.logs import JsonFormatter

#: A connection must have sent a whole header this long after it began one (seconds).
HEADER_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 75
SHUTDOWN_SECONDS = 20
MAX_HEADER_BYTES = 16 << 10


@dataclass(frozen=True)
class Listening:
    """Where the relay listens, and how it is reached."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    proxies: tuple[str, ...] = ()
    connections: int = 4096
    open_metrics: bool = False


class _Protocol(H11Protocol):
    """HTTP/1.1 that hangs up on who is slow to ask: uvicorn limits only the time in between."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEADER_SECONDS, self._hang_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif not busy and self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._hang_up)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class RelayServer(uvicorn.Server):
    """Says where it listens; at the end it answers whoever waits, instead of waiting for them."""

    def __init__(
        self, config: uvicorn.Config, objects: Objects, say: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._objects, self._say = objects, say

    async def startup(self, sockets: Any = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        if self.started:
            scheme = "https" if self.config.is_ssl else "http"
            for server in self.servers:
                for socket in server.sockets:
                    host, port = socket.getsockname()[:2]
                    shown = f"[{host}]" if ":" in host else host
                    self._say(f"relay listens at {scheme}://{shown}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        super().handle_exit(sig, frame)
        self._objects.waiting.close()


def read_roster(path: Path, authority: PublicKey) -> tuple[int, bytes]:
    """A sealed member list's serial and bytes; InputError unless the authority signed it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    try:
        roster = Members(None, authority).read(data)  # type: ignore[arg-type]
    except Violation as error:
        raise InputError(f"is no member list: {error.message}", where=str(path)) from None
    return roster.serial, data


def make_server(
    objects: Objects,
    listening: Listening,
    *,
    roster: tuple[int, bytes] | None = None,
    keep_days: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RelayServer:
    """A relay over ``objects``: ``run()`` serves until SIGTERM or Ctrl-C.

    Requests under way are answered first. ``roster`` is put into the store if it has no newer one.
    """

    async def background(metrics: RelayMetrics) -> None:
        while roster is not None:
            try:
                await objects.members.refresh(at_once=True)
                known = objects.members.roster
                if known is None or known.serial < roster[0]:
                    await objects.store.put(layout.federation_roster(roster[0]), roster[1])
                    await objects.members.refresh(at_once=True)
                break
            except OSError:
                await asyncio.sleep(1.0)
        if keep_days is not None:
            await keep_clean(objects, keep_days, metrics)

    config = uvicorn.Config(
        make_app(objects, open_metrics=listening.open_metrics, background=background),
        host=listening.host,
        port=listening.port,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        limit_concurrency=listening.connections,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        proxy_headers=bool(listening.proxies),
        forwarded_allow_ips=list(listening.proxies),
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.key,
    )
    return RelayServer(config, objects, say)


def log_to_stderr() -> None:
    """Every line of the log as one JSON object; a line of the access log is one already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RelayFormatter())
    for name in ("fedflow", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if name == "fedflow" else logging.WARNING)


class _RelayFormatter(JsonFormatter):
    """Puts the fields of a request beside the time, not into a message."""

    def format(self, record: logging.LogRecord) -> str:
        line = json.loads(super().format(record))
        if record.name == "fedflow.relay.access":
            line |= json.loads(line.pop("message"))
        return json.dumps(line)
