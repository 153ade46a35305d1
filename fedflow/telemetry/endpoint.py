"""``/metrics``, ``/healthz`` and ``/readyz`` of a process that serves nothing else over HTTP.

Runs in a thread of its own, so that it answers while the event loop works; whether the loop still
turns is what ``/healthz`` says. It takes no body, no query and no second request on a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from fedflow.errors import InputError

#: Form of an address in settings files; the host in brackets when it is IPv6.
ADDRESS = r"^$|^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$"
#: An event loop that did not turn for so long is not healthy (seconds).
STALLED_SECONDS = 30.0
_BEAT_SECONDS = 1.0


class Pulse:
    """Proof that an event loop still turns."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    async def beat(self) -> None:
        """Beat until cancelled."""
        while True:
            self._last = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)

    def complaint(self) -> str | None:
        """None while it beats, else how long it has not."""
        silent = time.monotonic() - self._last
        return f"no progress for {silent:.0f} s" if silent > STALLED_SECONDS else None


Check = Callable[[], str | None]


def _handler(registry: CollectorRegistry, checks: dict[str, Check]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10
        server_version, sys_version = "fedflow", ""

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
            elif self.path in checks:
                complaint = checks[self.path]()
                text = f"{complaint or 'ok'}\n".encode()
                self._answer(503 if complaint else 200, text, "text/plain; charset=utf-8")
            else:
                self._answer(404, b"try /metrics, /healthz or /readyz\n", "text/plain")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: whoever asks every few seconds is no news."""

    return Handler


@contextlib.contextmanager
def serve_metrics(
    address: str, registry: CollectorRegistry, *, health: Check, ready: Check
) -> Iterator[int | None]:
    """Answer at ``address`` (``host:port``; port 0 for any free one) while the block runs.

    Gives the port, or None for an empty address: then nothing is served. A check returns None, or
    a sentence of what is wrong. InputError when the address cannot be had.
    """
    if not address:
        yield None
        return
    host, _, port = address.rpartition(":")
    handler = _handler(registry, {"/healthz": health, "/readyz": ready})
    try:
        server = ThreadingHTTPServer((host.strip("[]"), int(port)), handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen there: {error}", where=address, field="metrics") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
