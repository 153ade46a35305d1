"""The command line of ``python -m benchmarks.scale_out``."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figures import Report, Row, WrongResult, add_form_options, machine, say, show
from fedflow.orchestration.local_server import LocalPrefectServer
from fedflow.orchestration.scale_out import RUNNERS, run, task_runner
from fedflow.simulation.sharded import Simulation, peak_mb

ABOUT = """Seconds per round of many simulated sites in shards, as a Prefect flow on a task runner:
real server, real protocol, every sum checked against the plain sum. See docs/scale-out.md."""


def rows(chosen: argparse.Namespace) -> Iterator[Row]:
    """Figures of one simulation."""
    sites = 60 if chosen.quick else chosen.sites
    size = f"n={sites} d={chosen.dimension} {chosen.shards} shards"
    with tempfile.TemporaryDirectory(prefix="fedflow-scale-") as folder:
        simulation = Simulation.create(
            Path(folder) / "simulation",
            sites=sites,
            shards=chosen.shards,
            dimension=chosen.dimension,
            lost=chosen.lost,
        )
        with LocalPrefectServer(Path(folder) / "prefect") as server, server.connected():
            runner = task_runner(chosen.runner, chosen.shards)
            state, rounds = asyncio.run(run(simulation, chosen.rounds, runner))
    if not state.is_completed():
        raise WrongResult(str(state.message))
    seconds = tuple(opened.seconds for opened in rounds)
    lost = f"{sum(opened.dropped for opened in rounds)} lost in {len(rounds)} rounds"
    note = f"{chosen.runner}; {lost}; the first round starts the workers"
    yield Row(f"scale_out_{chosen.runner}_round_s", "s", seconds, None, size, note)
    playing = tuple(max(report.seconds for report in opened.shards) for opened in rounds)
    yield Row(f"scale_out_{chosen.runner}_shard_s", "s", playing, None, size, "the slowest shard")
    rate = (len(rounds) / sum(seconds),)
    yield Row(f"scale_out_{chosen.runner}_rounds_per_s", "1/s", rate, None, size)
    peaks = tuple(max(report.peak_mb for report in opened.shards) for opened in rounds)
    yield Row(f"scale_out_{chosen.runner}_shard_mb", "MB", peaks, None, size, "peak of a worker")
    own = "peak of the flow's process, with the coordinator"
    yield Row(f"scale_out_{chosen.runner}_flow_mb", "MB", (peak_mb(),), None, size, own)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status: 1 when a result was wrong."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser("python -m benchmarks.scale_out", description=ABOUT)
    parser.add_argument("--runner", choices=RUNNERS, default="dask")
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dimension", type=int, default=1000)
    parser.add_argument("--lost", type=float, default=0.05, help="share of sites lost per round")
    parser.add_argument("--quick", action="store_true", help="60 sites")
    add_form_options(parser)
    chosen = parser.parse_args(given)
    report = Report(" ".join(["python -m benchmarks.scale_out", *given]), machine())
    try:
        report.add(rows(chosen))
    except WrongResult as wrong:
        say(f"no figures, a result is wrong: {wrong}")
        return 1
    show(report, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
