"""Analytics: who took part in the jobs so far, and what their tables look like.

``analytics`` is about participation, from signed public records.
Rounds, survivors, losses and refusals are read from what coordinator and sites have signed in the
exchange; seconds and bytes from the coordinator's own records. It knows nothing of anybody's data.

``preprocessing`` coordinates a job that only describes data (``strategy.name = "moments"``): sites
check, charge and sign it like any other. It ends with noised statistics of every column, and the
``[preprocessing]`` section that a plan to train by needs. From the coordinator's machine::

    python -m flows.analytics JOB --coordinator FOLDER
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import MarkdownArtifact, TableArtifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from fedflow.coordinator.job import load_job
from fedflow.coordinator.settings import CoordinatorFolder, open_coordinator
from fedflow.errors import FedflowError
from fedflow.federation.described import Described, described
from fedflow.orchestration.charts import bars_chart
from fedflow.orchestration.column_artifacts import publish_columns
from fedflow.orchestration.participation import Participation, job_rows, read_job, site_rows
from fedflow.orchestration.publishing import attempt, create, svg_url
from fedflow.wire.messages import JOB_ID
from flows.training import FOLDER_VARIABLE, federated_training, main

_MOST_BARS = 40


@flow(
    name="analytics",
    flow_run_name="participation in {job}",
    persist_result=False,
    log_prints=False,
    retries=0,
)
async def analytics(job: str = "all jobs") -> State[Any]:
    """Publish participation by job and by site. ``job`` limits it to one."""
    try:
        coordinator = open_coordinator(Path(os.environ.get(FOLDER_VARIABLE, ".")))
        jobs = await asyncio.to_thread(_read, coordinator, job)
    except FedflowError as error:
        return Failed(name="Refused", message=f"{error.code}: nothing could be read")
    except OSError:
        return Failed(message="the exchange cannot be reached")
    if not jobs:
        return Completed(name="Nothing to do", message="no job of this coordinator has begun")
    sites = site_rows(jobs)
    picture = bars_chart(
        "Rounds by site: in the sum, lost, refused",
        [(row["site"], (row["in the sum"], row["lost"], row["refused"])) for row in sites][
            :_MOST_BARS
        ],
        ["in the sum", "lost", "refused"],
    )
    about = "From records signed by coordinator and sites; it says nothing of anybody's data."
    one = job if JOB_ID.fullmatch(job) else "all"
    for artifact in (
        TableArtifact(key=f"participation-{one}-jobs", table=job_rows(jobs), description=about),
        TableArtifact(key=f"participation-{one}-sites", table=sites, description=about),
        MarkdownArtifact(
            key=f"participation-{one}-chart", markdown=f"![rounds by site]({svg_url(picture)})"
        ),
    ):
        await attempt(lambda artifact=artifact: create(artifact))  # type: ignore[misc]
    sums = sum(found.sums for found in jobs)
    return Completed(message=f"{len(jobs)} jobs, {sums} sums, {len(sites)} sites")


def _read(coordinator: CoordinatorFolder, job: str) -> list[Participation]:
    names = [job] if JOB_ID.fullmatch(job) else coordinator.exchange.list("jobs")
    found = (read_job(coordinator, name) for name in names if JOB_ID.fullmatch(name))
    return [one for one in found if one is not None and one.orders]


@flow(
    name="preprocessing",
    flow_run_name="preprocessing · {job}",
    persist_result=False,
    log_prints=False,
    retries=0,
)
async def preprocessing(job: str, sessions: bool = True) -> State[Any]:
    """Describe the columns of ``job``'s data over its sites, and say how to prepare them.

    ``sessions`` is whether sites are asked through Prefect; without, they must come by themselves.
    """
    try:
        coordinator = open_coordinator(Path(os.environ.get(FOLDER_VARIABLE, ".")))
        plan = load_job(coordinator.exchange, job, coordinator.authority).plan
    except FedflowError as error:
        return Failed(name="Refused", message=f"{error.code}: there is no such job here")
    if plan.strategy.name != "moments":
        return Failed(
            name="Refused", message=f"the plan of {job} does not describe columns: it trains"
        )
    state: State[Any] = await federated_training.fn(job, sessions)
    if not state.is_completed():
        return state
    try:
        found, where = await asyncio.to_thread(_described, coordinator, job)
    except FedflowError as error:
        return Failed(name="Refused", message=f"{error.code}: the job is over, nothing was read")
    except OSError:
        return Failed(message="the job is over, but the exchange cannot be reached")
    await publish_columns(found, where)
    return Completed(message=f"{len(found.columns)} columns, in {where}")


def _described(coordinator: CoordinatorFolder, job: str) -> tuple[Described, str]:
    """The statistics, and where in the coordinator's folder their section of a plan is written."""
    found = described(coordinator.exchange, job, coordinator.authority)
    path = coordinator.state_path(job).with_name("preprocessing.toml")
    path.write_text(found.toml(), "utf-8")
    return found, str(path.relative_to(coordinator.path))


if __name__ == "__main__":
    main(preprocessing, "flows.analytics")
