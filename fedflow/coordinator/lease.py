"""One coordinator per job and folder: whoever holds the lock on the job's lease file.

It holds on one machine. Between machines the exchange decides: an order can be put once, and who
comes second stops (:class:`fedflow.coordinator.runner.Superseded`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from fedflow.errors import Refusal


@contextlib.contextmanager
def held(path: Path, job: str) -> Iterator[None]:
    """Coordinate ``job`` alone; Refusal ``job-busy`` that names who does so already.

    The lock ends with the process, however it ends: a lease that was left behind is no obstacle.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise Refusal(
                "job-busy",
                f"job {job} is coordinated already, by {holder}. Stop that one first, or leave the"
                " job to it",
            ) from None
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        file.flush()
        yield
