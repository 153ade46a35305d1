"""Starts and ends the demo's processes, so that none is left behind however the demo ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from fedflow.errors import Refusal
from fedflow.tied import tied_command

_GRACE_SECONDS = 10.0


class Processes:
    """Named child processes, each the leader of a process group with its own log file."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        """Start ``python ARGUMENTS`` as ``name``; its output goes to ``logs/NAME.log``."""
        with open(self._logs / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                tied_command(arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """End a process group at once, as a power cut would."""
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def code(self, name: str) -> int | None:
        """Exit status, or None while it runs."""
        return self._running[name].poll()

    def require_alive(self, names: Iterable[str]) -> None:
        """Refusal quoting the end of its log when one of ``names`` ended by itself."""
        for name in names:
            process = self._running.get(name)
            if process is not None and process.poll() is not None:
                raise self._ended(name, "too early ")

    def require_success(self, name: str) -> None:
        """Refusal quoting the end of its log when ``name`` ended with another status than 0."""
        if self._running[name].wait() != 0:
            raise self._ended(name)

    def _ended(self, name: str, early: str = "") -> Refusal:
        return Refusal(
            "process-ended",
            f"{name} ended {early}with status {self._running[name].returncode}; its log is "
            f"{self._logs / f'{name}.log'} and ends with:\n{self.tail(name)}",
        )

    def tail(self, name: str, lines: int = 12) -> str:
        """The end of a process's log."""
        with contextlib.suppress(OSError):
            text = (self._logs / f"{name}.log").read_text(errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        return ""

    def stop(self) -> None:
        """Ask every process to end, then make it."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + _GRACE_SECONDS
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        for process in self._running.values():
            # The whole group, though its leader may be gone: a worker can leave a child behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running.clear()
