"""Processes as an init system keeps them: what ends is started again a moment later.

Started from the main thread only: the kernel ties each to the thread that made it. Orphans come
back to this process (it is their subreaper), so whoever outlives its parent is found.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from servers import Served
from servers import _descendants as descendants

from fedflow.orchestration.local_server import LocalPrefectServer
from fedflow.tied import tied_command

_SUBREAPER = 36
#: How long a process may live on after its parent was killed.
ORPHAN_SECONDS = 10.0


def adopt_orphans() -> None:
    """Have processes whose parent died become children of this one."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)


def children() -> list[int]:
    """Direct children of this process."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def command_of(pid: int) -> str:
    """The command line of a process; empty when it is gone or a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


@dataclass
class Unit:
    """One process that is kept running. ``kind`` is what a kill of it counts as."""

    name: str
    kind: str
    spawn: Callable[[], subprocess.Popen[bytes]]
    wanted: bool = True
    process: subprocess.Popen[bytes] | None = None
    start_at: float = 0.0  # when it is due to be started, while it does not run
    started: float = 0.0
    starts: int = 0
    kills: int = 0
    #: What a unit leaves behind goes with it, as a service's control group does.
    family: Callable[[], Sequence[int]] = field(default=lambda: ())

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self.process.pid if self.process is not None else None

    def start(self) -> None:
        """Start it now."""
        self.process = self.spawn()
        self.started = time.monotonic()
        self.starts += 1

    def kill(self) -> bool:
        """``kill -9`` of its main process, then of what its control group still holds."""
        if self.process is None or self.process.poll() is not None:
            return False
        rest = self.family()
        self.process.kill()
        for pid in rest:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.kills += 1
        return True

    def stop(self, seconds: float) -> bool:
        """Ask it to end, then make it; whether it ended by itself."""
        process, self.process = self.process, None
        if process is None:
            return True
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def python_unit(
    name: str, kind: str, arguments: list[str], environment: dict[str, str], log: Path
) -> Unit:
    """``python ARGUMENTS`` in a process group of its own, writing to ``log``."""

    def spawn() -> subprocess.Popen[bytes]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as out:
            return subprocess.Popen(
                tied_command(arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    return Unit(name, kind, spawn)


def served_unit(name: str, kind: str, server: Served) -> Unit:
    """PostgreSQL or Redis, without waiting until it answers."""

    def spawn() -> subprocess.Popen[bytes]:
        server._spawn()
        assert server.process is not None
        return server.process

    return Unit(
        name, kind, spawn, family=lambda: descendants(server.process.pid) if server.process else ()
    )


def prefect_unit(server: LocalPrefectServer) -> Unit:
    """A Prefect server on a port that stays, without waiting until it answers."""

    def spawn() -> subprocess.Popen[bytes]:
        server._spawn()
        assert server._process is not None
        return server._process

    return Unit("prefect", "server", spawn)


class Orphans:
    """Children nobody here started: each must be gone soon after its parent."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, str]] = {}
        self.found: list[str] = []

    def look(self, known: set[int]) -> None:
        """Reap the dead, and note (and end) those who stay."""
        now, mine = time.monotonic(), set(children()) - known
        self._seen = {pid: seen for pid, seen in self._seen.items() if pid in mine}
        for pid in mine:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    self._seen.pop(pid, None)
                    continue
            since, command = self._seen.setdefault(pid, (now, command_of(pid)))
            if now - since > ORPHAN_SECONDS:
                self.found.append(command)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
