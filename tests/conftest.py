"""Fixtures more than one room needs."""

import os

# As sites train: on models this small, threads only wait for one another, the longer the busier the
# machine. Read when the libraries load.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import signal
import threading

import pytest
from job_room import Room

# A shell that starts the suite in the background has it ignore Ctrl-C and SIGQUIT, and processes
# started here inherit that: Prefect's worker, which turns SIGTERM into Ctrl-C, would never stop,
# nor a server that is to end by SIGQUIT with whoever started it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


# Whole federations on real servers and hosts, minutes each: `make test-long` runs them as well, and
# so does .ci/run.
LONG = {
    "test_afternoon_tutorial.py",
    "test_chaos_short.py",
    "test_deploy_images.py",
    "test_deploy_wheel.py",
    "test_network_partitions.py",
    "test_orchestration_automations.py",
    "test_servers_crowd.py",
}


def pytest_collection_modifyitems(items):
    """Leave the slow tests of those files for `make test-long`."""
    if os.environ.get("FEDFLOW_LONG"):
        return
    skip = pytest.mark.skip(reason="takes minutes; run by `make test-long`")
    for item in items:
        if item.path.name in LONG and item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture
async def room(tmp_path):
    """A federation in one process."""
    made = Room(tmp_path)
    yield made
    await made.stop()
