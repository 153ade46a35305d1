"""One coordinator per job and folder, for as long as its process lives."""

import os
import signal
import subprocess
import sys

import pytest

from fedflow.coordinator import lease
from fedflow.errors import Refusal

HOLD = """
import sys, time
from pathlib import Path
from fedflow.coordinator.lease import held
with held(Path(sys.argv[1]), "job"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_who_is_first(tmp_path):
    path = tmp_path / "jobs" / "job" / "lease"
    with lease.held(path, "job"):
        with (
            pytest.raises(Refusal, match=f"process {os.getpid()} on ") as caught,
            lease.held(path, "job"),
        ):
            pass
        assert caught.value.code == "job-busy"
        with lease.held(tmp_path / "jobs" / "other" / "lease", "other"):
            pass
    with lease.held(path, "job"):
        pass


def test_a_killed_holder_leaves_no_lease(tmp_path):
    path = tmp_path / "lease"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(Refusal, match=f"process {process.pid} "), lease.held(path, "job"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with lease.held(path, "job"):
        pass
