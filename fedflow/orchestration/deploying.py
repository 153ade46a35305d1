"""``prefect deploy`` of the shipped flows, and what a server holds of fedflow afterwards."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any, TypeVar

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterTags,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from fedflow.errors import Refusal
from fedflow.orchestration.automations import installed
from fedflow.orchestration.configuration import WORKER_TYPE
from fedflow.orchestration.scrub import scrubbed_client

T = TypeVar("T")

POOL = "fedflow-coordinator"
_RECENT = 12


async def answered(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives; Refusal when the Prefect server does not answer, or refuses."""
    try:
        return await work
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        raise Refusal("prefect-server", f"the Prefect server answered with {status}") from None
    except (httpx.HTTPError, RuntimeError) as error:
        raise Refusal(
            "no-prefect-server",
            f"the Prefect server at {PREFECT_API_URL.value()} cannot be used"
            f" ({type(error).__name__}); start it, or set PREFECT_API_URL",
        ) from None


async def make_pool() -> bool:
    """Create the coordinator's work pool; False when it is there. Refusal "wrong-pool" if foreign.

    A pool of that name must be of type process: its runs execute on the coordinator's machine.
    """
    async with scrubbed_client() as client:
        try:
            pool = await client.read_work_pool(POOL)
        except ObjectNotFound:
            wanted = WorkPoolCreate(
                name=POOL,
                type="process",
                base_job_template=ProcessWorker.get_default_base_job_template(),
                description="The coordinator's own machine. Sites have pools of type fedflow.",
            )
            try:
                await client.create_work_pool(wanted)
            except ObjectAlreadyExists:
                return False
            return True
    if pool.type != "process":
        raise Refusal("wrong-pool", f"work pool {POOL!r} exists and has type {pool.type!r}")
    return False


def deploy_all(names: tuple[str, ...] = ()) -> str:
    """Run ``prefect deploy`` over the shipped ``flows/prefect.yaml``, without a question.

    ``names`` limits it to some deployments. Returns what Prefect printed; Refusal with it when it
    failed. Needs the work pool.
    """
    chosen = [part for name in names for part in ("--name", name)] or ["--all"]
    with as_file(files("flows") / "prefect.yaml") as file:
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *chosen]
        done = subprocess.run(
            [*command, "--prefect-file", str(file)],
            cwd=file.parent,
            env={**os.environ, "PREFECT_CLI_PROMPT": "false", "DO_NOT_TRACK": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise Refusal("deploy", f"prefect deploy failed:\n{done.stdout}{done.stderr}".strip())
    return done.stdout


@dataclass(frozen=True)
class Overview:
    """What a Prefect server holds of fedflow: rows of names and words, for a person."""

    pools: list[tuple[str, str, str]]
    deployments: list[tuple[str, str, str]]
    runs: list[tuple[str, str, str]]
    automations: list[tuple[str, str, bool]]


async def overview() -> Overview:
    """Pools, deployments, the newest runs and automations of fedflow on the server."""
    async with scrubbed_client() as client:
        pools = [
            (pool.name, pool.type, "paused" if pool.is_paused else _status(pool.status))
            for pool in await client.read_work_pools()
            if pool.type == WORKER_TYPE or pool.name == POOL
        ]
        deployments = await _deployments(client)
        tagged = FlowRunFilter(tags=FlowRunFilterTags(any_=["fedflow"]))
        found = await client.read_flow_runs(
            flow_run_filter=tagged, sort=FlowRunSort.START_TIME_DESC, limit=_RECENT
        )
    runs = [
        (
            run.name,
            run.state.name or "" if run.state else "",
            (run.state.message or "" if run.state else "").split("\n")[0][:80],
        )
        for run in found
    ]
    return Overview(sorted(pools), deployments, runs, await installed())


async def _deployments(client: PrefectClient) -> list[tuple[str, str, str]]:
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=["fedflow"]))
    found = await client.read_deployments(deployment_filter=tagged)
    flows = await asyncio.gather(*(client.read_flow(d.flow_id) for d in found))
    rows = []
    for one, flow in zip(found, flows, strict=True):
        active = [str(s.schedule) for s in one.schedules if s.active]
        when = "paused" if one.paused else f"{len(active)} of {len(one.schedules)} schedules active"
        rows.append(
            (f"{flow.name}/{one.name}", one.work_pool_name or "", when if one.schedules else "")
        )
    return sorted(rows)


def _status(status: object) -> str:
    return {"READY": "a worker is there", "NOT_READY": "no worker"}.get(
        getattr(status, "value", str(status)), "unknown"
    )
