"""The exchange behind an HTTP relay: every request signed by the member that makes it.

A relay is untrusted like every exchange. So its answers are bounded in size and time, its words are
shown as plain text at most, and what it gives is held against the frame's checksum here and against
signatures by whoever asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import httpx

from fedflow.crypto.identity import Identity
from fedflow.errors import InputError, Refusal, Violation
from fedflow.exchange.base import MAX_OBJECT_BYTES, check_key
from fedflow.exchange.frame import HEADER, unframe
from fedflow.exchange.request_signing import sign_request
from fedflow.wire.codec import plain_text

#: The longest a relay holds a request (seconds), and what is waited for its answer beyond that.
MAX_WAIT_SECONDS = 25.0
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 30.0
MAX_REASON_BYTES, MAX_LIST_BYTES = 4096, 64 << 20
_CONNECTIONS = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=60)
#: A kept connection that the other side closed fails like this: nothing is lost by asking again.
_STALE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class RelayExchange:
    """A relay's mailbox. Safe to use from any thread; ``wait`` from any event loop."""

    remote = True

    def __init__(self, url: str, identity: Identity | None) -> None:
        if identity is None:
            raise InputError(
                "a relay asks who reads and writes: an identity is needed", field="exchange"
            )
        self._base = _base(url)
        self._identity = identity
        self._options: dict[str, Any] = {
            "timeout": httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            "limits": _CONNECTIONS,
            "follow_redirects": False,
            "trust_env": not _is_loopback(self._base),  # proxies and certificates of the machine
            "headers": {"accept-encoding": "identity", "user-agent": "fedflow"},
        }
        self._client = httpx.Client(**self._options)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]
        self._clients = WeakKeyDictionary()

    def put(self, key: str, payload: bytes) -> None:
        """Store once."""
        target = f"/v1/objects/{check_key(key)}"
        status, body = self._request("PUT", target, payload, MAX_REASON_BYTES)
        if status not in (200, 201):
            _raise(status, body)

    def get(self, key: str, limit: int = MAX_OBJECT_BYTES) -> bytes | None:
        """Read back."""
        target = f"/v1/objects/{check_key(key)}"
        return _object(*self._request("GET", target, b"", limit + HEADER))

    def list(self, prefix: str) -> list[str]:
        """Children of a folder."""
        target = f"/v1/list/{check_key(prefix)}"
        status, body = self._request("GET", target, b"", MAX_LIST_BYTES)
        if status != 200:
            _raise(status, body)
        return _names(body)

    async def wait(
        self,
        key: str,
        limit: int = MAX_OBJECT_BYTES,
        *,
        seconds: float,
        unless: Sequence[str] = (),
    ) -> bytes | None:
        """The object as soon as it is there; None after ``seconds`` (25 at most), or when one of
        ``unless`` is there first. One request, which the relay holds. Cancellable.
        """
        held = max(0.0, min(seconds, MAX_WAIT_SECONDS))
        query = "".join(f"&unless={check_key(name)}" for name in unless)
        target = f"/v1/objects/{check_key(key)}?wait={held:.3f}{query}"
        client = self._async_client()
        timeout = httpx.Timeout(held + ANSWER_SECONDS, connect=CONNECT_SECONDS)
        for attempt in (1, 2):
            request = client.build_request(
                "GET", self._base + target, headers=self._header("GET", target), timeout=timeout
            )
            try:
                with _as_outage():
                    response = await client.send(request, stream=True)
                    try:
                        body = _Bounded(response.status_code, limit + HEADER)
                        async for part in response.aiter_raw():
                            body.add(part)
                    finally:
                        await response.aclose()
            except _Stale:
                if attempt == 1:
                    continue
                raise OSError("the relay closed the connection") from None
            return _object(response.status_code, body.data())
        raise AssertionError

    def close(self) -> None:
        """Close kept connections. Not needed at the end of a process."""
        self._client.close()

    def _async_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = httpx.AsyncClient(**self._options)
        return client

    def _header(self, method: str, target: str, body: bytes = b"") -> dict[str, str]:
        return {"authorization": sign_request(self._identity, method, target, body)}

    def _request(self, method: str, target: str, body: bytes, limit: int) -> tuple[int, bytes]:
        """Status and body of an answer of at most ``limit`` bytes; OSError while there is none."""
        for attempt in (1, 2):
            headers = self._header(method, target, body)
            request = self._client.build_request(
                method, self._base + target, content=body or None, headers=headers
            )
            try:
                with _as_outage():
                    response = self._client.send(request, stream=True)
                    try:
                        answer = _Bounded(response.status_code, limit)
                        for part in response.iter_raw():
                            answer.add(part)
                    finally:
                        response.close()
            except _Stale:
                if attempt == 1:
                    continue
                raise OSError("the relay closed the connection") from None
            return response.status_code, answer.data()
        raise AssertionError


class _Stale(Exception):
    """The connection broke before an answer came."""


@contextlib.contextmanager
def _as_outage() -> Iterator[None]:
    """OSError for every way in which there is no answer; ``_Stale`` where a second try is due."""
    try:
        yield
    except _STALE:
        raise _Stale from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ssl.SSLError) as error:
        what = plain_text(str(error), 200) or type(error).__name__
        raise OSError(f"the relay is not reachable: {what}") from None


class _Bounded:
    """Bytes as they arrive; Violation ``too-long`` beyond a limit, whatever was announced."""

    def __init__(self, status: int, most: int) -> None:
        self._most, self._size = most if status == 200 else MAX_REASON_BYTES, 0
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        """Take what arrived."""
        self._size += len(part)
        if self._size > self._most:
            raise Violation("too-long", f"the relay's answer has more than {self._most} bytes")
        self._parts.append(part)

    def data(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


def _object(status: int, body: bytes) -> bytes | None:
    if status == 200:
        return unframe(body)
    if status == 404 and _reason(body)[0] == "absent":
        return None
    return _raise(status, body)


def _names(body: bytes) -> list[str]:
    try:
        names = json.loads(body)["names"]
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Violation("bad-answer", "the relay's list cannot be read") from None
    return sorted(name for name in names if len(name) <= 128 and "/" not in name)


def _reason(body: bytes) -> tuple[str, str]:
    """The word and the sentence in an answer, as far as they can be read."""
    try:
        said = json.loads(body[:MAX_REASON_BYTES])
        return plain_text(str(said["code"]), 64), plain_text(str(said["reason"]), 300)
    except (ValueError, TypeError, KeyError, RecursionError):
        return "unknown", "it did not say why"


def _raise(status: int, body: bytes) -> NoReturn:
    code, reason = _reason(body)
    if status == 409:
        raise Violation("already-put", f"the relay says: {reason}")
    if status == 413:
        raise Violation("too-long", f"the relay says: {reason}")
    if status in (401, 403):
        raise Refusal(code, f"the relay refused: {reason}")
    if status in (408, 429) or status >= 500:
        raise OSError(f"the relay cannot now ({status}): {reason}")
    raise Violation("bad-answer", f"the relay answered {status}: {reason}")


def _base(url: str) -> str:
    """The relay's address without a slash at the end; InputError for anything but a plain one."""
    allowed = "https://host:port, perhaps with a path; http:// only on this machine or a safe net"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise InputError("this is no address", field="exchange", allowed=allowed) from None
    if not parsed.host or parsed.userinfo or parsed.query or parsed.fragment or "#" in url:
        raise InputError("this is no relay's address", field="exchange", allowed=allowed)
    return url.rstrip("/")


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
