"""Children of the training process: one that holds loaded data, and one of its own per request.

The warm process (:mod:`fedflow.site.trainer`) forks a child that parses and checks a data file
once. For each request that child forks another, which reads the request, works and answers: a
crash, an out-of-memory kill or a leak ends with the request. The holder sees no request, the warm
process no data but the answer it passes on. A file that changed in any way is loaded anew.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Generic, TypeVar

from fedflow.tied import die_with_parent

T = TypeVar("T")
#: Device, inode, size and times of a file.
FileState = tuple[int, int, int, int, int]

#: How long a holder that nobody asks keeps its data (seconds).
IDLE_SECONDS = 600.0
#: A file changed so shortly before it was read may change again without a new time stamp (ns).
_SETTLED = 100_000_000
_PIECE = 1 << 18
#: What the holder says of a request: answered; died; answered, and the data are not kept.
_ANSWERED, _DIED, _ENDING = b"a", b"d", b"e"


class Died(Exception):
    """The request's process ended too early. ``passed`` says whether part of an answer had left."""

    def __init__(self, passed: bool) -> None:
        super().__init__("the request's process ended too early")
        self.passed = passed


def file_state(path: str) -> FileState | None:
    """What tells a file from a changed one; None for what is no file, or was changed just now."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    newest = max(found.st_mtime_ns, found.st_ctime_ns)
    if not stat.S_ISREG(found.st_mode) or time.time_ns() - newest < _SETTLED:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass
class _Holder:
    """A child that holds data: what it loaded, and this process's end of the line to it."""

    pid: int
    line: socket.socket
    workload: str
    path: str
    state: FileState | None

    def end(self) -> None:
        self.line.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


class Holders(Generic[T]):
    """The warm process's side: at most one holder at a time, as a site is in one job at a time.

    ``load(workload, path)`` gives the data or raises; ``answer(out, source, loaded)`` reads one
    request and answers it, ``loaded()`` being the data or raising what ``load`` raised. ``private``
    are descriptors of this process that children have no business with.
    """

    def __init__(
        self,
        load: Callable[[str, str], T],
        answer: Callable[[BinaryIO, BinaryIO, Callable[[], T]], None],
        *,
        private: Iterable[int] = (),
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._load, self._answer = load, answer
        self._private, self._idle = tuple(private), idle_seconds
        self._holder: _Holder | None = None

    def forget(self) -> None:
        """End the holder, and with it the data in memory."""
        if self._holder is not None:
            self._holder.end()
            self._holder = None

    def request(
        self, workload: str, path: str, write: Callable[[BinaryIO], None], out: BinaryIO
    ) -> None:
        """Have one request answered: ``write`` puts it into a pipe, the answer goes to ``out``.

        Died when the answer is not whole.
        """
        holder = self._ready(workload, path)
        status = b""
        with contextlib.ExitStack() as stack:
            request_end, to_child = _pipe(stack)
            from_child, answer_end = _pipe(stack)
            with contextlib.suppress(ConnectionError):
                socket.send_fds(holder.line, [b"r"], [request_end.fileno(), answer_end.fileno()])
                request_end.close()
                answer_end.close()
                write(to_child)
            request_end.close()
            answer_end.close()
            with contextlib.suppress(BrokenPipeError):
                to_child.close()
            whole, passed = _pass_on(from_child, out)
            with contextlib.suppress(ConnectionError):
                status = holder.line.recv(1)
        if status not in (_ANSWERED, _DIED):
            self.forget()
        if not whole:
            raise Died(passed)

    def _ready(self, workload: str, path: str) -> _Holder:
        state, held = file_state(path), self._holder
        if held is not None:
            same = (held.workload, held.path, held.state) == (workload, path, state)
            # It says nothing unasked: what can be read is its end, by a kill or after idling.
            ended = select.select([held.line], [], [], 0)[0]
            if state is not None and same and not ended:
                return held
            self.forget()
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            with _last():
                _tie(parent)
                ours.close()
                for number in self._private:
                    os.close(number)
                self._hold(theirs, workload, path, state)
        theirs.close()
        self._holder = _Holder(pid, ours, workload, path, state)
        return self._holder

    # ---- in the holder

    def _hold(self, line: socket.socket, workload: str, path: str, state: FileState | None) -> None:
        """Load, then serve requests until the line closes, nobody asks, or the data are stale."""
        failure: BaseException | None = None
        try:
            data = self._load(workload, path)
        except Exception as error:
            failure = error

        def loaded() -> T:
            if failure is not None:
                raise failure
            return data

        # Changed while it was read: this request is answered, the next one loads again.
        keeps = failure is None and state is not None and state == file_state(path)
        gc.freeze()  # children then share what is loaded instead of copying it
        while select.select([line], [], [], self._idle)[0]:
            _, numbers, _, _ = socket.recv_fds(line, 1, 2)
            if len(numbers) != 2:
                return
            # A fork takes no threads along. Where loading has left some, this process works itself.
            if not keeps or _threads() > 1:
                self._work(numbers, loaded)
                line.send(_ENDING)
                return
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                with _last():
                    _tie(parent)
                    line.close()
                    self._work(numbers, loaded)
            for number in numbers:
                os.close(number)
            _, status = os.waitpid(pid, 0)
            line.send(_DIED if status else _ANSWERED)

    def _work(self, numbers: list[int], loaded: Callable[[], T]) -> None:
        with os.fdopen(numbers[0], "rb") as source, os.fdopen(numbers[1], "wb") as out:
            self._answer(out, source, loaded)


@contextlib.contextmanager
def _last() -> Iterator[None]:
    """What a forked child does, and nothing after it: it never returns into its parent's code."""
    code = 1
    try:
        yield
        code = 0
    finally:
        os._exit(code)


def _tie(parent: int) -> None:
    """End with the parent; at once, when it ended before the kernel was asked."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)


def _pass_on(source: BinaryIO, out: BinaryIO) -> tuple[bool, bool]:
    """Copy one frame piece by piece; whether all of it came, and whether any of it was passed on.

    Its lengths are read as they pass: who wrote it may die right after, and it is whole all the
    same.
    """
    start = source.read(4)
    start += source.read(int.from_bytes(start, "big") + 8)
    left = int.from_bytes(start[-8:], "big")
    if len(start) < 12 or len(start) != int.from_bytes(start[:4], "big") + 12:
        return False, False
    out.write(start)
    while left and (piece := source.read(min(_PIECE, left))):
        out.write(piece)
        left -= len(piece)
    out.flush()
    return not left, True


def _pipe(stack: contextlib.ExitStack) -> tuple[BinaryIO, BinaryIO]:
    read_end, write_end = os.pipe()
    reader, writer = os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb")
    stack.callback(_close, reader)
    stack.callback(_close, writer)
    return reader, writer


def _close(stream: BinaryIO) -> None:
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # not Linux
        return threading.active_count()
