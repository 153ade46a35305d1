"""A site daemon that is told what to say, a Prefect server that lies, and short cuts to both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prefect.settings import temporary_settings

from fedflow.orchestration.registration import register_site
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.orchestration.worker import FedflowWorker
from fedflow.site.socket_protocol import Accepted, End, SessionRequest, serve

MANIFEST = "ab" * 32


class Daemon:
    """A site daemon that answers every session with ``answer`` and remembers what it was asked."""

    def __init__(self, path) -> None:
        self.path = path
        self.requests = []
        self.answer = self.complete
        self.server = None

    @staticmethod
    async def complete(request, send):
        await send(Accepted())
        if isinstance(request, SessionRequest):
            await send(End(outcome="completed", reason="3 rounds"))

    async def _handle(self, request, send):
        self.requests.append(request)
        await self.answer(request, send)

    @property
    def sessions(self):
        return [request for request in self.requests if isinstance(request, SessionRequest)]

    async def up(self):
        self.server = await serve(self.path, self._handle)

    async def down(self):
        if self.server is not None:
            await self.server.close()
            self.server = None


class EvilServer:
    """Forwards to the real API, after ``mutate(method, path, answer) -> answer`` had its way.

    ``respond(method, path)`` may answer by itself: a status, headers and a body. Web sockets go to
    the port ``sockets``, where there is one.
    """

    def __init__(self, target: str) -> None:
        self.mutate = lambda method, path, answer: answer
        self.respond = lambda method, path: None
        self.sockets = None
        self.seen = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def _forward(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                outer.seen.append((self.command, self.path, body + str(self.headers).encode()))
                if (own := outer.respond(self.command, self.path)) is not None:
                    return self._answer(own[0], own[2], own[1])
                if self.headers.get("upgrade"):
                    return self._tunnel() if outer.sockets else self._answer(404, b"{}")
                keep = {k: v for k, v in self.headers.items() if k.lower() in KEPT}
                request = urllib.request.Request(
                    target + self.path, data=body or None, headers=keep, method=self.command
                )
                try:
                    with urllib.request.urlopen(request, timeout=30) as answer:
                        status, content = answer.status, answer.read()
                except urllib.error.HTTPError as exc:
                    status, content = exc.code, exc.read()
                path = self.path.removeprefix("/api")
                with contextlib.suppress(ValueError):
                    changed = outer.mutate(self.command, path, json.loads(content or b"null"))
                    if isinstance(changed, bytes):
                        content = changed
                    elif content:
                        content = json.dumps(changed).encode()
                return self._answer(status, content)

            def _tunnel(self):
                head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
                self.close_connection = True
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", outer.sockets)) as up,
                ):
                    up.sendall(f"{self.requestline}\r\n{head}\r\n".encode())
                    down = self.connection
                    threading.Thread(target=_pump, args=(down, up), daemon=True).start()
                    _pump(up, down)

            def _answer(self, status, content, headers=()):
                if self.headers.get("upgrade"):  # web sockets know nothing older
                    self.protocol_version, self.close_connection = "HTTP/1.1", True
                self.send_response(status)
                self.send_header("content-type", "application/json")
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(content)

            def __getattr__(self, name):
                if name.startswith("do_"):  # every method alike
                    return self._forward
                raise AttributeError(name)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.api_url = f"http://127.0.0.1:{self._http.server_port}/api"

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def received(self, text: str) -> bool:
        """Whether ``text`` occurs in anything a client sent: path, headers or body."""
        return any(text.encode() in path.encode() + raw for _, path, raw in self.seen)


def _pump(source, target):
    """Copy bytes until either side ends, then end the other."""
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.asynccontextmanager
async def bystander():
    """A host that no server may send a site to: its port, and what came there."""
    came = []

    async def note(reader, writer):
        came.append(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], came


KEPT = {"content-type", "x-prefect-api-version", "prefect-csrf-token", "prefect-csrf-client"}


async def start_run(label, parameters=None, **kwargs):
    """A flow run at the site's pool, as an API user would create it; its id."""
    deployment_id = await register_site(label)
    async with scrubbed_client() as client:
        run = await client.create_flow_run_from_deployment(
            deployment_id,
            parameters={"job": "trial", "manifest": MANIFEST} if parameters is None else parameters,
            **kwargs,
        )
    return run.id


async def read_state(run_id):
    async with scrubbed_client() as client:
        return (await client.read_flow_run(run_id)).state


@contextlib.asynccontextmanager
async def worker_at(label, api_url=None):
    """The worker of a site in this process, talking to ``api_url``."""
    change = temporary_settings({"api.url": api_url}) if api_url else contextlib.nullcontext()
    with change:
        async with FedflowWorker(work_pool_name=label, name=label) as worker:
            yield worker


async def serve_run(label, run_id, api_url=None, seconds=20.0):
    """Let the site's worker take what is scheduled; the run's state when it is final."""
    async with worker_at(label, api_url) as worker:
        await worker.get_and_submit_flow_runs()
        return await until_final(run_id, seconds)


async def until_final(run_id, seconds=20.0):
    deadline = time.monotonic() + seconds
    while True:
        state = await read_state(run_id)
        if state.is_final() or time.monotonic() > deadline:
            return state
        await asyncio.sleep(0.1)
