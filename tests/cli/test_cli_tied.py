"""A tied process ends with the one that started it, whatever that did to its signals."""

import subprocess
import sys
import time

import pytest
from processes import is_alive

PROGRAM = """
import os, signal, subprocess, sys
from fedflow.tied import tied_command
exec(sys.argv[1])
child = subprocess.Popen(
    tied_command(["-c", "print('up', flush=True); import time; time.sleep(300)"]),
    stdout=subprocess.PIPE,
)
assert child.stdout.readline() == b"up\\n"
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ties processes")
@pytest.mark.parametrize(
    "before",
    [
        "",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
    ],
    ids=["plain", "ignored", "blocked"],
)
def test_it_ends_with_its_starter(before):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, before], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -9, done.stderr
    child = int(done.stdout)
    until = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(child)
