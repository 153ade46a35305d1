"""Many simulated sites in shards, as one flow on threads, Dask or Ray.

Within a Prefect server's reach (PREFECT_API_URL)::

    python -m flows.scale_out ./scale --sites 1000 --shards 2 --rounds 3 --runner dask
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from prefect.exceptions import TerminationSignal

from fedflow.errors import FedflowError
from fedflow.orchestration.scale_out import RUNNERS, run, task_runner
from fedflow.simulation.sharded import Simulation

T = TypeVar("T")


async def _until_stopped(work: Coroutine[Any, Any, T]) -> T:
    """``work``; SIGTERM ends it as Ctrl-C does. While the flow runs Prefect sees to that."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> None:
    """Make a simulation and play it."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.scale_out",
        description="Simulate many sites, sharded over workers. Made-up numbers, no noise.",
        epilog="example: python -m flows.scale_out ./scale --sites 1000 --shards 2 --runner dask",
    )
    parser.add_argument("folder", type=Path, help="a new folder for keys and messages")
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=2, help="one worker for each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dimension", type=int, default=1000, help="length of the vector")
    parser.add_argument("--lost", type=float, default=0.05, help="share of sites lost per round")
    parser.add_argument("--runner", choices=RUNNERS, default="dask")
    options = parser.parse_args()
    try:
        simulation = Simulation.create(
            options.folder,
            sites=options.sites,
            shards=options.shards,
            dimension=options.dimension,
            lost=options.lost,
        )
        runner = task_runner(options.runner, options.shards)
        state, rounds = asyncio.run(_until_stopped(run(simulation, options.rounds, runner)))
    except FedflowError as error:
        parser.exit(2, f"fedflow: {error}\n")
    except (asyncio.CancelledError, KeyboardInterrupt, TerminationSignal):
        parser.exit(130, "fedflow: stopped\n")
    for opened in rounds:
        peak = max(report.peak_mb for report in opened.shards)
        print(
            f"round {opened.number}: sum of {opened.survivors} sites, {opened.dropped} lost, "
            f"{opened.seconds:.1f} s, at most {peak:.0f} MB in a shard"
        )
    if not state.is_completed():
        parser.exit(1, f"fedflow: {state.name}: {state.message}\n")


if __name__ == "__main__":
    main()
