"""Flower's rounds on the same machine: a SuperLink and three SuperNodes, trivial training.

The apps are in ``benchmarks/peers/flwr_overhead``. Everything runs in the peer's own environment
(``make peer-flwr``) as Flower starts it, with its defaults.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.figures import WrongResult
from benchmarks.secagg.versus import python_of
from fedflow.tied import die_with_parent

APPS = Path(__file__).parents[1] / "peers/flwr_overhead"
NODES = 3
START_SECONDS, RUN_SECONDS = 60.0, 900.0
_ROUND = re.compile(r"ROUND_S ([0-9.]+)")
_CONFIG = """\
[superlink]
default = "loopback"

[superlink.loopback]
address = "127.0.0.1:{port}"
insecure = true
"""


def rounds_in(output: str) -> tuple[float, ...]:
    """Seconds of every round but the first, in which processes start; WrongResult without any."""
    found = tuple(float(seconds) for seconds in _ROUND.findall(output))
    if len(found) < 2:
        raise WrongResult(f"the peer's run gave no rounds; it ended with: {output[-500:]}")
    return found[1:]


def flower_rounds(kind: str) -> tuple[float, ...]:
    """Seconds per round of ``kind`` "plain" or "secagg"."""
    with tempfile.TemporaryDirectory(prefix="flwr-") as name, ExitStack() as stack:
        folder, programs = Path(name), python_of("flwr").parent
        control = _free_port()
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(_CONFIG.format(port=control))
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": path,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
        }

        def start(name: str, *arguments: str) -> None:
            with open(folder / f"{name}.log", "wb") as log:
                process = subprocess.Popen(
                    arguments,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=partial(die_with_parent, signal.SIGTERM),
                )
            stack.callback(_end, process)

        link = str(programs / "flower-superlink")
        address = f"127.0.0.1:{control}"
        start(
            "superlink",
            *(link, "--insecure", "--disable-runtime-dependency-installation"),
            *("--host", "127.0.0.1", "--port", str(control)),
        )
        _wait_for_port(control)
        for number in range(NODES):
            start(
                f"node-{number}",
                *(str(programs / "flower-supernode"), "--insecure", "--superlink", address),
                *("--port", str(_free_port()), "--node-config", f"partition-id={number}"),
            )
        app = shutil.copytree(APPS / kind, folder / kind)
        try:
            done = subprocess.run(
                [str(programs / "flwr"), "run", str(app), "--stream"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=RUN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WrongResult(f"the peer's run took over {RUN_SECONDS:g} s") from None
        return rounds_in(done.stdout)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _wait_for_port(port: int) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise WrongResult("the peer's SuperLink did not start")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
