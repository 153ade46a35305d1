"""How a Prefect worker talks to the site daemon: JSON lines over a Unix socket.

The worker is untrusted by the daemon (its Prefect client parses a server's bytes), so the language
is tiny: one request per connection, no free text towards the daemon, every line at most 8 KiB,
every field checked. The daemon answers with events and closes. A session outlives its connection:
a worker that reconnects with the same job and manifest is attached to the session again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path

from fedflow.errors import FedflowError, InputError, Misuse, Refusal, Violation
from fedflow.site.socket_messages import (
    MAX_LINE,
    Accepted,
    BudgetLow,
    CancelRequest,
    End,
    Outcome,
    Phase,
    Progress,
    Reply,
    Request,
    SessionRequest,
    Status,
    StatusRequest,
    decode_reply,
    decode_request,
    encode_line,
)

__all__ = [
    "MAX_LINE",
    "Accepted",
    "BudgetLow",
    "CancelRequest",
    "End",
    "Handler",
    "LinkLost",
    "Outcome",
    "Phase",
    "Progress",
    "Reply",
    "Request",
    "Send",
    "SessionRequest",
    "SiteLink",
    "SocketServer",
    "Status",
    "StatusRequest",
    "decode_reply",
    "decode_request",
    "encode_line",
    "serve",
]

MAX_PATH = 100  # bytes; the kernel's sun_path holds 107, and macOS less
REQUEST_SECONDS = 10.0
MAX_CONNECTIONS = 16

Send = Callable[[Reply], Awaitable[None]]
Handler = Callable[[Request, Send], Awaitable[None]]


class LinkLost(ConnectionError):
    """The daemon is not there, or went away before it answered. Connecting again may help."""


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """One line without its newline, or ``b""`` at the end of the stream."""
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise LinkLost("the connection ended in the middle of a line") from None
        return b""
    except asyncio.LimitOverrunError:
        raise Violation("line-too-long", f"a line is longer than {MAX_LINE} bytes") from None
    return line[:-1]


def _check_path(path: str | os.PathLike[str]) -> Path:
    size = len(os.fsencode(path))
    if size > MAX_PATH:
        raise InputError(
            f"the socket path has {size} bytes; Unix sockets need a short one. Use a folder nearer "
            "to the root, or set FEDFLOW_SITE_SOCKET",
            where=str(path),
            field="socket",
            allowed=f"at most {MAX_PATH} bytes",
        )
    return Path(path)


class SiteLink:
    """The worker's side of the socket at ``path``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _check_path(path)

    @contextlib.asynccontextmanager
    async def _connect(self, request: Request) -> AsyncIterator[asyncio.StreamReader]:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.path), limit=MAX_LINE)
        except OSError as exc:
            raise LinkLost(f"no site daemon answers at {self.path} ({exc.strerror})") from None
        try:
            writer.write(encode_line(request))
            await writer.drain()
            yield reader
        except OSError as exc:
            raise (
                exc if isinstance(exc, LinkLost) else LinkLost("the site daemon went away")
            ) from None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def session(self, job: str, manifest: str) -> AsyncGenerator[Reply, None]:
        """Yield the session's replies up to and including its :class:`End`.

        Raises LinkLost when the daemon goes away first, Violation for a line outside the protocol.
        """
        async with self._connect(SessionRequest(job=job, manifest=manifest)) as reader:
            while True:
                reply = await self._reply(reader, timeout=None)
                if isinstance(reply, Status):
                    raise Violation(
                        "bad-line", "the site daemon answered a session with its status"
                    )
                yield reply
                if isinstance(reply, End):
                    return

    async def cancel(self, job: str) -> Accepted | End:
        """Ask for the session of ``job`` to end: Accepted, or End when there is no such session."""
        async with self._connect(CancelRequest(job=job)) as reader:
            reply = await self._reply(reader)
        if not isinstance(reply, Accepted | End):
            raise Violation("bad-line", "the site daemon gave no answer to a cancellation")
        return reply

    async def status(self) -> Status:
        """What the daemon is doing."""
        async with self._connect(StatusRequest()) as reader:
            reply = await self._reply(reader)
        if not isinstance(reply, Status):
            raise Violation("bad-line", "the site daemon did not answer with its status")
        return reply

    async def _reply(
        self, reader: asyncio.StreamReader, timeout: float | None = REQUEST_SECONDS
    ) -> Reply:
        try:
            line = await asyncio.wait_for(_read_line(reader), timeout)
        except TimeoutError:
            raise LinkLost("the site daemon does not answer") from None
        if not line:
            raise LinkLost("the site daemon went away")
        return decode_reply(line)


class SocketServer:
    """A listening site socket. Close it with :meth:`close`, or use it as ``async with``."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self.path = path
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._inode: int | None = None

    async def _start(self, sock: socket.socket) -> None:
        self._inode = os.stat(self.path).st_ino
        self._server = await asyncio.start_unix_server(self._connected, sock=sock, limit=MAX_LINE)

    async def __aenter__(self) -> SocketServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening, cancel the handlers that still run, remove the socket file."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(OSError):  # a newer daemon's socket at the same path stays
            if os.stat(self.path).st_ino == self._inode:
                self.path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise Misuse("a connection outside a task")
        if len(self._tasks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the peer left, or we are closing: a session does not depend on its connection
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(reply: Reply) -> None:
            writer.write(encode_line(reply))
            try:
                await asyncio.wait_for(writer.drain(), REQUEST_SECONDS)
            except TimeoutError:
                writer.transport.abort()
                raise LinkLost("the worker does not read") from None

        try:
            line = await asyncio.wait_for(_read_line(reader), REQUEST_SECONDS)
            request = decode_request(line)
        except TimeoutError:
            return
        except Violation as exc:
            await send(End(outcome="refused", code=exc.code, reason=exc.message))
            return
        answer = asyncio.ensure_future(self._answer(request, send))
        left = asyncio.ensure_future(reader.read(1))  # end of stream: the worker is gone
        try:
            await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            answer.cancel()
            left.cancel()
            await asyncio.gather(answer, left, return_exceptions=True)

    async def _answer(self, request: Request, send: Send) -> None:
        try:
            await self._handler(request, send)
        except ConnectionError:
            return
        except FedflowError as exc:
            # only the code: a message can quote a local file
            outcome: Outcome = "refused" if isinstance(exc, Refusal) else "error"
            await send(End(outcome=outcome, code=exc.code))
        except Exception:
            await send(End(outcome="error", code="internal"))
            raise


async def serve(
    path: str | os.PathLike[str], handler: Handler, *, mode: int = 0o600, group: str = ""
) -> SocketServer:
    """Listen at ``path`` and answer each connection's one request with ``handler(request, send)``.

    The socket file has ``mode`` 0600, or 0660 where worker and daemon are two users of one group;
    naming the ``group`` means the latter.
    A handler is cancelled when its worker leaves, so a session must run in a task of its own.
    Raises InputError for a path that is too long, not a socket, or served by a live daemon.
    """
    if mode not in (0o600, 0o660):
        raise Misuse("a site socket is for its owner, or for its owner and group")
    mode = 0o660 if group else mode
    path = _check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_room(path)
        before = os.umask(0o777 & ~mode)  # bind is synchronous: no moment with wider rights
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        if group:
            _give_to(path, group)
        server = SocketServer(path, handler)
        await server._start(sock)
    except OSError as exc:
        sock.close()
        raise InputError(
            f"cannot listen: {exc.strerror}", where=str(path), field="socket"
        ) from None
    except BaseException:
        sock.close()
        raise
    return server


def _give_to(path: Path, group: str) -> None:
    """Let a group use the socket; InputError, and no socket, when that cannot be."""
    try:
        shutil.chown(path, group=int(group) if group.isdecimal() else group)
    except LookupError:
        why = f"there is no group {group!r} on this machine"
    except PermissionError:
        why = f"this user is not in the group {group!r}"
    else:
        return
    path.unlink()
    raise InputError(why, field="socket_group", allowed="a group of the agent's user")


def _make_room(path: Path) -> None:
    """Remove a socket file whose daemon is dead; refuse anything else in the way."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise InputError("this file is in the way and is not a socket", where=str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        code = probe.connect_ex(str(path))
    if code in (0, errno.EAGAIN):
        raise InputError("another site daemon already serves this socket", where=str(path))
    if code == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
