"""What a schedule runs: the next job the authority has published and nobody has finished.

Every job has a manifest of its own, signed offline, so a schedule cannot make one up: it looks for
the oldest job in the exchange that names this coordinator, is within its time and has not ended,
and starts the run that coordinates it. With none it says so and is done.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterTags
from prefect.client.schemas.objects import State, StateType
from prefect.deployments.flow_runs import arun_deployment
from prefect.states import Completed, Failed

from fedflow.coordinator.job import Job, load_job
from fedflow.coordinator.settings import CoordinatorFolder, open_coordinator
from fedflow.errors import FedflowError
from fedflow.exchange import layout
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.wire.messages import JOB_ID, JobEnd
from fedflow.wire.sealed import unseal
from flows.training import FOLDER_VARIABLE

TRAINING, EVALUATION = "federated_training/training", "evaluation/evaluation"
PREPROCESSING = "preprocessing/preprocessing"
_DONE = [StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED]


@flow(name="next_job", flow_run_name="next job", persist_result=False, log_prints=False, retries=0)
async def next_job(
    training: str = TRAINING, evaluation: str = EVALUATION, preprocessing: str = PREPROCESSING
) -> State[Any]:
    """Start the run that coordinates the next published job, and end.

    ``training``, ``evaluation`` and ``preprocessing`` are the deployments that coordinate a job.
    """
    log = get_run_logger()
    try:
        coordinator = open_coordinator(Path(os.environ.get(FOLDER_VARIABLE, ".")))
        waiting = await asyncio.to_thread(open_jobs, coordinator)
    except FedflowError as error:
        return Failed(name="Refused", message=f"{error.code}: the coordinator's folder or exchange")
    except OSError:
        return Failed(message="the exchange cannot be reached; the next run looks again")
    if not waiting:
        return Completed(name="Nothing to do", message="no published job waits for a coordinator")
    job = waiting[0]
    deployment = training if job.plan.plan.rounds else evaluation
    if job.plan.strategy.name == "moments":
        deployment = preprocessing
    runs = await _runs_of(job.id)
    if runs["open"]:
        return Completed(
            name="Nothing to do", message=f"job {job.id} has a run already; {len(waiting)} wait"
        )
    async with scrubbed_client() as client:
        run = await arun_deployment(
            deployment,
            client=client,
            parameters={"job": job.id},
            tags=[job_tag(job.id)],
            # two schedules that fire at once start one run; one that has ended may be followed
            idempotency_key=f"fedflow/next/{job.digest.hex()}/{runs['ended']}",
            timeout=0,
            as_subflow=False,
        )
    log.info("job %s: run %s", job.id, run.name)
    return Completed(message=f"started {deployment} for job {job.id}; {len(waiting) - 1} more wait")


def open_jobs(coordinator: CoordinatorFolder) -> list[Job]:
    """Jobs of this coordinator that are within their time and have not ended, the oldest first.

    Anybody who can write to the exchange can leave other things there: they are no jobs.
    """
    found = []
    for name in coordinator.exchange.list("jobs"):
        if not JOB_ID.fullmatch(name):
            continue
        try:
            job = load_job(coordinator.exchange, name, coordinator.authority)
        except FedflowError:
            continue
        manifest = job.manifest
        mine = manifest.coordinator == coordinator.identity.public.raw
        if mine and time.time() <= manifest.not_after and not _ended(coordinator, job):
            found.append(job)
    return sorted(found, key=lambda job: (job.manifest.created, job.id))


def job_tag(job: str) -> str:
    """The tag of every run that belongs to a job."""
    return f"job:{job}"


def _ended(coordinator: CoordinatorFolder, job: Job) -> bool:
    data = coordinator.exchange.get(layout.end(job.id), layout.MAX_SEALED_BYTES)
    if data is None:
        return False
    try:
        end = unseal(JobEnd, data, coordinator.identity.public)
    except FedflowError:
        return False  # not this coordinator's word
    return end.manifest == job.digest


async def _runs_of(job: str) -> dict[str, int]:
    """How many runs started for a job are open, and how many have ended.

    A crashed one counts as open: an automation starts it again.
    """
    tags = FlowRunFilterTags(all_=[job_tag(job), "fedflow-resume"])
    counts = {}
    async with scrubbed_client() as client:
        for word, kinds in (
            ("ended", {"any_": _DONE}),
            ("open", {"not_any_": _DONE}),
        ):
            state = FlowRunFilterState.model_validate({"type": kinds})
            counts[word] = await client.count_flow_runs(
                flow_run_filter=FlowRunFilter(tags=tags, state=state)
            )
    return counts
