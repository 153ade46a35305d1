"""A simulation of many sites as a Prefect flow: one task for each shard of sites and round.

The shards of a round run side by side, on threads, on Dask or on Ray; the coordinator's part runs
with the flow. Prefect carries a folder's name and two numbers: messages go through that folder, and
tasks return nothing but a state. All of it is on the coordinator's side: a real site is never a
Dask or Ray worker, for those run what they are sent.
"""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from fedflow.errors import FedflowError, InputError, Refusal
from fedflow.simulation.sharded import Opened, open_sum, play_shard
from fedflow.simulation.shards import Post, Simulation

RUNNERS = ("threads", "dask", "ray")
_LAST: dict[str, list[Opened]] = {}


def task_runner(name: str, workers: int) -> TaskRunner[Any]:
    """A runner of this name with ``workers`` places, on this machine.

    InputError for another name, Refusal when its package is not installed.
    """
    if name == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    if name not in RUNNERS:
        raise InputError(f"{name!r} is no task runner", field="runner", allowed=", ".join(RUNNERS))
    try:
        module = importlib.import_module(f"prefect_{name}")
    except ImportError:
        raise Refusal(
            "missing-extra",
            f"prefect-{name} is not installed in this environment; see docs/scale-out.md",
        ) from None
    runner: TaskRunner[Any]
    if name == "dask":
        cluster = {"n_workers": workers, "threads_per_worker": 1, "processes": True}
        local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
        runner = module.DaskTaskRunner(cluster_kwargs={**cluster, **local})
    else:
        runner = module.RayTaskRunner(init_kwargs={"num_cpus": workers, "include_dashboard": False})
    return runner


@task(
    name="play_shard",
    task_run_name="sites of shard {shard} · round {number}",
    persist_result=False,
    cache_policy=NO_CACHE,
    log_prints=False,
    retries=0,
)
def play(folder: str, shard: int, number: int) -> State[Any]:
    """All sites of one shard, for one round."""
    try:
        report = play_shard(Simulation.open(Path(folder)), shard, number)
    except FedflowError as error:
        return Failed(name="Aborted", message=f"{error.code}: {error.message}")
    except Exception as error:
        return Failed(name="Aborted", message=type(error).__name__)
    return Completed(message=f"{report.survivors} sites answered, {report.peak_mb:.0f} MB")


@task(
    name="aggregate_shards",
    task_run_name="secure aggregate · round {number}",
    persist_result=False,
    cache_policy=NO_CACHE,
    log_prints=False,
    retries=0,
)
async def aggregate(folder: str, number: int) -> State[Any]:
    """The sum over all shards, checked against the plain sum."""
    try:
        opened = await asyncio.to_thread(open_sum, Simulation.open(Path(folder)), number)
    except FedflowError as error:
        return Failed(name="Aborted", message=f"{error.code}: {error.message}")
    _LAST.setdefault(folder, []).append(opened)
    return Completed(message=f"sum of {opened.survivors} sites, {opened.dropped} were lost")


@flow(
    name="federated_scale_out",
    flow_run_name="scale-out · {rounds} rounds",
    persist_result=False,
    log_prints=False,
    retries=0,
)
async def scale_out(folder: str, rounds: int) -> State[Any]:
    """Play ``rounds`` rounds of the simulation in ``folder``, from the first."""
    simulation = Simulation.open(Path(folder))
    for number in range(1, rounds + 1):
        try:
            shards = [play.submit(folder, shard, number) for shard in range(simulation.shards)]
            opened: State[Any] = await aggregate(folder, number, return_state=True)  # type: ignore[misc]
            for shard in shards:
                await asyncio.to_thread(shard.wait)
        except BaseException:
            # threads and other processes wait for messages of this round: they shall not any more
            Post(simulation, number).give_up("stopped")
            raise
        if not opened.is_completed():
            return Failed(name="Aborted", message=f"round {number}: {opened.message}")
    return Completed(message=f"{rounds} rounds of {simulation.sites} sites")


async def run(
    simulation: Simulation, rounds: int, runner: TaskRunner[Any]
) -> tuple[State[Any], list[Opened]]:
    """Run the flow with ``runner``; how it ended, and its rounds.

    The runner needs a place for each shard: they wait for one another.
    """
    folder = str(simulation.folder)
    _LAST.pop(folder, None)
    state: State[Any] = await scale_out.with_options(task_runner=runner)(
        folder, rounds, return_state=True
    )
    return state, _LAST.pop(folder, [])
