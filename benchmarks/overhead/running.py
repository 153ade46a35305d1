"""One job of the benchmark, run as it is deployed, and what its rounds took."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import WrongResult
from benchmarks.overhead.federation import JOB, Federation, build, plan_of
from fedflow.demo.processes import Processes
from fedflow.learning.first_model import first_model
from fedflow.learning.trivial import DATA_FILE, workload
from fedflow.orchestration.local_server import LocalPrefectServer, free_port
from fedflow.orchestration.worker_process import worker_command, worker_environment
from fedflow.site.trainer import load, perform

ROOT = Path(__file__).parents[2]
#: The most sites that get processes of their own here: an agent, its training process, a worker.
OWN_PROCESSES = 10
HOSTS = 2  #: processes that share the sites of a larger federation
START_SECONDS, DEADLINE_SECONDS = 60.0, 1800.0


@dataclass(frozen=True)
class Measured:
    """Seconds of every round but the first and the last, from order to order, and of training."""

    sites: int
    rounds: tuple[float, ...]
    to_sum: tuple[float, ...]
    training: float
    hosting: str

    @property
    def overhead(self) -> tuple[float, ...]:
        """What the rounds took beyond training."""
        return tuple(seconds - self.training for seconds in self.rounds)


@contextlib.contextmanager
def prefect_server(kind: str, folder: Path) -> Iterator[LocalPrefectServer]:
    """A real server: on SQLite, or on a PostgreSQL and a Redis of its own."""
    if kind == "sqlite":
        server = LocalPrefectServer(folder / "prefect")
        try:
            server.start(timeout=300.0)
            yield server
        finally:
            server.stop()
    else:
        sys.path.insert(0, str(ROOT / "tests/support"))
        from servers import prefect_on_postgres

        with prefect_on_postgres(folder / "prefect") as server:
            yield server


def run(sites: int, rounds: int, server: str = "sqlite", exchange: str = "folder") -> Measured:
    """Run a job of ``rounds`` rounds over ``sites`` sites; WrongResult when a round is short."""
    with tempfile.TemporaryDirectory(prefix="ff-") as name:
        folder = Path(name)
        relay = f"http://127.0.0.1:{free_port()}" if exchange == "relay" else ""
        federation = build(folder, sites, plan_of(rounds), relay)
        processes = Processes(folder / "logs")
        try:
            if relay:
                _start_relay(federation, processes)
            federation.publish()
            with prefect_server(server, folder) as prefect:
                hosting = _start_sites(federation, prefect, processes)
                _coordinate(federation, prefect, processes)
        finally:
            processes.stop()
        walls, sums = read_events(federation.coordinator.events_path(JOB), sites)
        where = f"{hosting}; the exchange is a {exchange}, Prefect is on {server}"
        return Measured(sites, walls, sums, training_seconds(federation), where)


def _start_relay(federation: Federation, processes: Processes) -> None:
    arguments = ["-m", "fedflow.cli.main", "exchange", "serve", str(federation.folder / "relay")]
    arguments += ["--authority", federation.authority.public.hex()]
    arguments += ["--roster", str(federation.roster)]
    arguments += ["--port", federation.url.rpartition(":")[2]]
    processes.start("relay", arguments, dict(os.environ))
    until = time.monotonic() + START_SECONDS
    while True:
        processes.require_alive(["relay"])
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{federation.url}/readyz", trust_env=False).is_success:
                return
        if time.monotonic() > until:
            raise WrongResult(f"the relay did not start: {processes.tail('relay')}")
        time.sleep(0.1)


def _start_sites(federation: Federation, server: LocalPrefectServer, processes: Processes) -> str:
    quiet = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    labels = federation.labels
    if len(labels) > OWN_PROCESSES:
        for number in range(HOSTS):
            folders = [str(federation.site(label)) for label in labels[number::HOSTS]]
            arguments = ["-m", "benchmarks.overhead.hosting", JOB, *folders]
            here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            processes.start(f"host-{number}", arguments, quiet | here)
        return f"{HOSTS} processes hold all sites, which come without Prefect and train in them"
    for label in labels:
        arguments = ["-m", "fedflow.cli.main", "site", "start", str(federation.site(label))]
        processes.start(label, arguments, quiet)
        home = federation.folder / "workers" / label
        home.mkdir(parents=True)
        environment = worker_environment(server.environment(), federation.socket(label), home)
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "3"
        processes.start(f"{label}-worker", worker_command(label)[1:], environment)
    return "an agent, a training process and a worker for each site"


def _coordinate(federation: Federation, server: LocalPrefectServer, processes: Processes) -> None:
    folder = str(federation.coordinator.path)
    arguments = ["-m", "flows.training", JOB, "--coordinator", folder]
    processes.start("coordinator", arguments, dict(os.environ | server.environment()))
    until = time.monotonic() + DEADLINE_SECONDS
    while processes.code("coordinator") is None:
        if time.monotonic() > until:
            raise WrongResult(
                f"no end after {DEADLINE_SECONDS:g} s: {processes.tail('coordinator')}"
            )
        time.sleep(0.2)
    processes.require_success("coordinator")


def read_events(path: Path, sites: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """From a job's event log: seconds from order to order, and from order to sum.

    The first round is left out, as everything is loaded in it, and the last, which is scored.
    WrongResult when a round needed a second attempt or lacked a site: it took what it took for
    another reason.
    """
    events: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    orders = [e for e in events if e["event"] == "order" and e["kind"] == "train"]
    done = [e for e in events if e["event"] == "round-done"]
    if any(e["attempt"] > 1 for e in orders) or len(done) < 3:
        raise WrongResult("a round was ordered again, or too few were done")
    if any(len(e["sites"]) != sites for e in done):
        raise WrongResult("a site is missing in a round")
    starts = [e["time"] for e in orders]
    walls = tuple(late - early for early, late in pairwise(starts))[1:]
    return walls, tuple(e["seconds"] for e in done[1:-1])


def training_seconds(federation: Federation, times: int = 20) -> float:
    """What training one round takes by itself, on loaded data, in this process."""
    path = federation.site(federation.labels[0]) / DATA_FILE
    loaded = load(workload.name, str(path))
    model = first_model(federation.plan).file
    request = {
        "task": "train",
        "workload": workload.name,
        "data": str(path),
        "plan": federation.plan.canonical().decode(),
        "sites": len(federation.labels),
        "value_range": 100.0,
    }
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        perform(request, model, loaded)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
