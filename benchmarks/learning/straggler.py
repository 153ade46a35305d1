"""One site is ten times slower: time to a score, synchronous rounds against FedBuff's.

Real processes: an agent and a training process for each site, a coordinator, a folder as the
exchange, secure aggregation on; no Prefect. Steps sleep, so that cores have no part in it. Rounds
that are synchronous wait for everybody. Time is from the first order.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, WrongResult, say
from benchmarks.learning.digits import rounds_to
from benchmarks.learning.paced import PACE, install
from benchmarks.overhead.federation import Federation, build
from benchmarks.utility.report import Amount
from fedflow.demo.processes import Processes
from fedflow.learning.plan import Plan
from fedflow.learning.randhie import partition_sites, vendored_table
from fedflow.learning.trivial import DATA_FILE

ROOT = Path(__file__).parents[2]
#: RAND HIE's six sites. With a step of 0.1 s a training takes a second, at the slow site ten.
SITES, SLOWER, STEPS, STEP_SECONDS = 6, 10, 10, 0.1
TARGET, RUNS = 69.0, 1
DEADLINE_SECONDS = 600.0


def plan_of(asynchronous: bool) -> Plan:
    """The same training for both; only who is waited for differs."""
    strategy: dict[str, Any] = {"name": "fedavg", "server_learning_rate": 1.0}
    if asynchronous:
        strategy |= {"name": "fedbuff", "buffer": SITES - 1}
    return Plan.model_validate(
        {
            "plan": {"name": "straggler", "workload": "paced", "rounds": 30},
            "cohort": {"minimum": 3, "colluders": 1},
            "strategy": strategy,
            "training": {"local_steps": STEPS, "learning_rate": 1.0},
            "privacy": {
                "unit": "person",
                "clipping_norm": 0.5,
                "noise_multiplier": 2.0,
                "sample_rate": 0.05,
                "delta": 1e-5,
            },
            "evaluation": {"every": 30, "bins": 10, "noise_multiplier": 20.0},
            "secure_aggregation": {"bits": 32, "value_range": 8.0},
            "deadlines": {"round_seconds": 60.0, "leg_seconds": 30.0},
        }
    )


def straggler_rows(amount: Amount) -> Iterator[Row]:
    """Seconds of both, alternately, and how many times faster the asynchronous rounds are."""
    step = STEP_SECONDS / 5 if amount.quick else STEP_SECONDS
    curves: dict[str, list[list[tuple[float, float]]]] = {"synchronous": [], "asynchronous": []}
    for _ in range(amount.seeds(1) if amount.quick else RUNS):
        for name, found in curves.items():
            found.append(run(plan_of(name == "asynchronous"), step))
            say(f"{name}: {len(found[-1])} rounds, {found[-1][-1][0]:.1f} s")
    yield from rows_of(curves, step, judged=not amount.quick)


def rows_of(
    curves: dict[str, list[list[tuple[float, float]]]], step: float, *, judged: bool
) -> Iterator[Row]:
    """The rows of what was run; WrongResult when a run did not get to the target."""
    size = f"{SITES} sites, a training takes {STEPS * step:g} s, at one of them {SLOWER} times that"
    seconds: dict[str, tuple[float, ...]] = {}
    for name, runs in curves.items():
        reached = [rounds_to(curve, TARGET) for curve in runs]
        seconds[name] = tuple(each for each in reached if each is not None)
        if len(seconds[name]) < len(runs):
            raise WrongResult(f"{name} rounds did not reach an AUC of {TARGET:g}")
        note = f"to AUC {TARGET:g}; in {' and '.join(str(len(curve)) for curve in runs)} rounds"
        yield Row(f"{name}_seconds", "s", seconds[name], None, size, note, curve=tuple(runs[0]))
    pairs = zip(seconds["synchronous"], seconds["asynchronous"], strict=True)
    note = f"FedBuff, buffer {SITES - 1}, against rounds that wait for all; to AUC {TARGET:g}"
    ratios = tuple(a / b for a, b in pairs)
    yield Row("async_speedup_straggler10", "x", ratios, ">= 3", size, note, judged)


def real_sites() -> list[bytes]:
    """The data files of RAND HIE's sites."""
    return list(partition_sites(vendored_table()).values())


def run(plan: Plan, step: float) -> list[tuple[float, float]]:
    """One job by ``plan``, whose steps take ``step`` seconds: (seconds, AUC x 100) by round."""
    with tempfile.TemporaryDirectory(prefix="ff-") as name:
        folder = Path(name)
        install(folder / "installed")
        sys.path.append(str(folder / "installed"))
        processes = Processes(folder / "logs")
        try:
            federation = build(folder, SITES, plan)
            for label, data in zip(federation.labels, real_sites(), strict=True):
                (federation.site(label) / DATA_FILE).write_bytes(data)
                slow = label == federation.labels[-1]
                pace = step * SLOWER if slow else step
                (federation.site(label) / PACE).write_text(str(pace))
            federation.publish()
            return _run(federation, processes, folder)
        finally:
            processes.stop()
            sys.path.remove(str(folder / "installed"))


def _run(federation: Federation, processes: Processes, folder: Path) -> list[tuple[float, float]]:
    path = os.pathsep.join([str(ROOT), str(folder / "installed")])
    environment = dict(os.environ) | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for label in federation.labels:
        arguments = ["-m", "fedflow.cli.main", "site", "start", str(federation.site(label))]
        processes.start(label, [*arguments, "--no-prefect"], environment)
    arguments = ["-m", "benchmarks.learning.timed_job", str(federation.coordinator.path)]
    arguments += [str(TARGET), *(str(federation.site(n) / DATA_FILE) for n in federation.labels)]
    processes.start("coordinator", arguments, environment)
    until = time.monotonic() + DEADLINE_SECONDS
    while processes.code("coordinator") is None:
        processes.require_alive(federation.labels)
        if time.monotonic() > until:
            raise WrongResult(f"no end after {DEADLINE_SECONDS:g} s")
        time.sleep(0.2)
    processes.require_success("coordinator")
    curve = json.loads(processes.tail("coordinator", lines=1))
    return [(float(seconds), float(score)) for seconds, score in curve]
