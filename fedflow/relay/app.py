"""The relay's HTTP side: one signed request in, one answer out, one line in the access log."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from fedflow.errors import FedflowError
from fedflow.exchange.frame import frame
from fedflow.exchange.places import place
from fedflow.relay.access import Party
from fedflow.relay.answer import Answer, of_error
from fedflow.relay.gate import Gate
from fedflow.relay.metrics import RelayMetrics
from fedflow.relay.objects import Objects, Wait
from fedflow.wire.codec import plain_text

log = logging.getLogger("fedflow.relay")
access_log = logging.getLogger("fedflow.relay.access")

#: Of a refused body so much is read all the same, or the client would not see why it was refused.
DRAIN_BYTES, DRAIN_SECONDS = 8 << 20, 10.0
MOST_UNLESS = 4
_METHODS = ("GET", "HEAD", "PUT")
_ROUTE = re.compile(r"/v1/(objects|list)/([A-Za-z0-9._/-]{1,512})")
_WAIT = re.compile(r"wait=([0-9]{1,2}(?:\.[0-9]{1,3})?)((?:&unless=[A-Za-z0-9._/-]{1,512})*)")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Gone(Exception):
    """The client went away: there is nobody to answer."""


class RelayEndpoint:
    """Everything below ``/v1/``, as an ASGI application."""

    def __init__(self, objects: Objects, gate: Gate, metrics: RelayMetrics) -> None:
        self._objects, self._gate, self._metrics = objects, gate, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        call = _Call(scope, receive, send)
        with contextlib.suppress(_Gone):
            try:
                await self._serve(call)
            except Answer as answer:
                await self._refuse(call, answer)
            except FedflowError as error:
                await self._refuse(call, of_error(error))
            except OSError:
                log.warning("the store", exc_info=True)
                away = Answer(503, "store", "the relay's store is not reachable now; try again", 1)
                await self._refuse(call, away)
            except TimeoutError:  # not reached for bodies; a safe answer for whatever took so long
                await self._refuse(call, Answer(503, "busy", "this took too long; try again", 1))
        self._note(call)

    async def _serve(self, call: _Call) -> None:
        if call.method not in _METHODS:
            raise Answer(405, "bad-method", f"methods are {', '.join(_METHODS)}")
        call.party, request = await self._gate.admit(
            call.address, call.header("authorization"), call.method, call.target
        )
        route = _ROUTE.fullmatch(call.path)
        if route is None or (route[1] == "list" and call.method != "GET"):
            raise Answer(404, "no-such-path", "paths are /v1/objects/KEY and /v1/list/FOLDER")
        if call.method == "PUT":
            await self._put(call, route[2], request.body)
            return
        if request.body != _NO_BODY or call.header("content-length") not in (None, "0"):
            raise Answer(400, "bad-request", "this request has no body")
        if route[1] == "list":
            names = await self._objects.names(call.party, _no_query(call, route[2]))
            await call.send(200, json.dumps({"names": names}).encode(), "application/json")
            return
        await self._get(call, route[2])

    async def _put(self, call: _Call, key: str, digest: bytes) -> None:
        assert call.party is not None
        size = call.content_length()
        limits = self._objects.limits
        seconds = limits.body_seconds + size / limits.body_bytes_per_second
        new = await self._objects.put(
            call.party,
            _no_query(call, key),
            size,
            digest,
            lambda: call.body(size, digest, seconds),
        )
        self._metrics.bytes.labels("in").inc(size)
        await call.send(201 if new else 200, b"")

    async def _get(self, call: _Call, key: str) -> None:
        assert call.party is not None
        async with call.until_gone() as gone:
            wait = self._wait(call.query, gone)
            if call.method == "HEAD":
                size = await self._objects.size(call.party, key, wait)
                data = None if size is None else bytes(0)
            else:
                data = await self._objects.get(call.party, key, wait)
            if gone.done():
                raise _Gone
        if data is None:
            raise Answer(404, "absent", "there is no such object (yet)")
        if call.method == "HEAD":
            await call.send(200, b"", size=size)
            return
        self._metrics.bytes.labels("out").inc(len(data))
        await call.send(200, frame(data))

    def _wait(self, query: str, gone: asyncio.Future[None]) -> Wait | None:
        if not query:
            return None
        found = _WAIT.fullmatch(query)
        unless = tuple(found[2].split("&unless=")[1:]) if found else ()
        if found is None or len(unless) > MOST_UNLESS:
            raise Answer(400, "bad-query", "the query is wait=SECONDS and up to 4 unless=KEY")
        return Wait(min(float(found[1]), self._objects.limits.wait_seconds), unless, gone)

    async def _refuse(self, call: _Call, answer: Answer) -> None:
        call.code = answer.code
        if answer.code != "absent":
            self._metrics.refused.labels(answer.code).inc()
        headers = [(b"retry-after", str(answer.retry_after).encode())] if answer.retry_after else []
        if call.method == "PUT" and not call.body_read:
            headers.append((b"connection", b"close"))
            if call.party is not None and answer.code != "too-slow":
                await call.drain()
        await call.send(answer.status, answer.body(), "application/json", headers=headers)

    def _note(self, call: _Call) -> None:
        seconds = time.monotonic() - call.started
        where = place(call.path.removeprefix("/v1/objects/"))
        kind = (
            where.kind.value if where else "list" if call.path.startswith("/v1/list/") else "none"
        )
        role = call.party.word if call.party else "stranger"
        method = call.method if call.method in _METHODS else "other"
        self._metrics.requests.labels(method, kind, role, str(call.status)).inc()
        self._metrics.seconds.labels(method).observe(seconds)
        if access_log.isEnabledFor(logging.INFO):
            line = {
                "method": plain_text(call.method, 10),
                "path": plain_text(call.path, 300),
                "status": call.status,
                "code": call.code,
                "ms": round(seconds * 1000, 1),
                "bytes_in": call.bytes_in,
                "bytes_out": call.bytes_out,
                "member": call.party.label if call.party else None,
                "role": role,
                "address": call.address,
            }
            access_log.info(json.dumps(line))


_NO_BODY = hashlib.sha256(b"").digest()


def _no_query(call: _Call, key: str) -> str:
    if call.query:
        raise Answer(400, "bad-query", "this request has no query")
    return key


class _Call:
    """One request on its way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.method: str = scope["method"]
        # As sent: what is signed and what is looked at are the same bytes, nothing is unescaped.
        self.path: str = scope["raw_path"].decode("latin-1")
        self.query: str = scope["query_string"].decode("latin-1")
        self.target = f"{self.path}?{self.query}" if self.query else self.path
        self.address: str = scope["client"][0] if scope.get("client") else ""
        self.started = time.monotonic()
        self.party: Party | None = None
        self.status, self.code, self.bytes_in, self.bytes_out = 0, "", 0, 0
        self.body_read = False

    def header(self, name: str) -> str | None:
        """The value of a header that is there once; Answer 400 when it is there twice."""
        found = [value for key, value in self._scope["headers"] if key == name.encode()]
        if len(found) > 1:
            raise Answer(400, "bad-request", f"the header {name} is there more than once")
        return found[0].decode("latin-1") if found else None

    def content_length(self) -> int:
        """The length of the body, which must be declared."""
        text = self.header("content-length")
        if self.header("transfer-encoding") is not None or text is None:
            raise Answer(411, "no-length", "a PUT declares its Content-Length")
        if not re.fullmatch("[0-9]{1,12}", text):
            raise Answer(400, "bad-request", "this is no Content-Length")
        return int(text)

    async def body(self, size: int, digest: bytes, seconds: float) -> bytes:
        """The body: exactly ``size`` bytes with this SHA-256, within ``seconds``."""
        buffer = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        self.code, self.status = "gone", 499
                        raise _Gone
                    buffer += message.get("body", b"")
                    self.bytes_in = len(buffer)
                    if len(buffer) > size:
                        raise Answer(400, "bad-request", "the body is longer than declared")
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Answer(408, "too-slow", f"the body took longer than {seconds:.0f} s") from None
        self.body_read = True
        payload = bytes(buffer)
        if len(payload) != size or hashlib.sha256(payload).digest() != digest:
            raise Answer(400, "wrong-body", "the body is not the one that was signed")
        return payload

    async def drain(self) -> None:
        """Read a refused body, if it is not too large."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                drained = self.bytes_in
                while drained <= DRAIN_BYTES:
                    message = await self._receive()
                    drained += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return

    @contextlib.asynccontextmanager
    async def until_gone(self) -> AsyncIterator[asyncio.Future[None]]:
        """A future that is done when the client went away. For requests without a body."""

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass

        gone = asyncio.ensure_future(watch())
        try:
            yield gone
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def send(
        self,
        status: int,
        body: bytes,
        kind: str = "application/octet-stream",
        *,
        size: int | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """The whole answer. ``size`` is that of the object a HEAD asked for."""
        self.status, self.bytes_out = status, len(body)
        length = len(body) if size is None else len(frame(b"")) + size
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", kind.encode()),
                (b"content-length", str(length).encode()),
                (b"cache-control", b"no-store"),
                *(headers or []),
            ],
        }
        if self.method == "HEAD":
            body = b""
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def make_app(
    objects: Objects,
    *,
    open_metrics: bool = False,
    background: Callable[[RelayMetrics], Awaitable[None]] | None = None,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The relay as an ASGI application. ``background`` runs beside it until it ends."""
    metrics = RelayMetrics(objects)
    gate = Gate(objects.members, objects.limits, clock)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.ensure_future(background(metrics)) if background else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await objects.store.close()

    app = FastAPI(
        lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )

    @app.get("/healthz")
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> PlainTextResponse:
        try:
            await objects.members.refresh(at_once=True)
        except OSError:
            return PlainTextResponse("the store is not reachable\n", 503)
        if objects.members.roster is None:
            return PlainTextResponse("there is no member list yet; publish one\n", 503)
        return PlainTextResponse("ok\n")

    @app.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        near = request.client is not None and request.client.host in ("127.0.0.1", "::1")
        if not (near or open_metrics):
            return PlainTextResponse("only for this machine; see --open-metrics\n", 403)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.mount("/v1", RelayEndpoint(objects, gate, metrics))
    return app
