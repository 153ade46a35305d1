"""Runs a Python command that ends when the process that started it ends, however that happened.

``python -m fedflow.tied -m prefect server start`` runs ``python -m prefect server start``. On Linux
the kernel is asked to signal the child; elsewhere the command runs as it is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied_command(arguments: Sequence[str]) -> list[str]:
    """The command line of ``python ARGUMENTS``, tied to the process that starts it."""
    return [sys.executable, "-m", "fedflow.tied", *arguments]


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process ``number`` when its parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def main() -> None:
    """Tie this process, then become the command. The tie outlives the change of program."""
    parent = os.getppid()
    # Whoever started this may block or ignore the signal, and children inherit that.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # it ended in between
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
