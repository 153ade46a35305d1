"""Evaluation: score a model that is already trained, once, by one noised secure sum.

It is a job of its own: the authority signs a manifest whose plan trains nothing (``rounds = 0``)
and whose first model is the trained one. Sites check, charge and sign it like any other, and refuse
every training order in it. Each evaluation costs the held-out persons' account one release.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from fedflow.coordinator.job import load_job
from fedflow.coordinator.runner import JobRunner
from fedflow.coordinator.settings import open_coordinator
from fedflow.errors import FedflowError
from flows.training import FOLDER_VARIABLE, federated_training


@flow(
    name="evaluation",
    flow_run_name="evaluation · {job}",
    persist_result=False,
    log_prints=False,
    retries=0,
)
async def evaluation(job: str, sessions: bool = True) -> State[Any]:
    """Score the first model of ``job``, whose plan has no training rounds, over its sites.

    ``sessions`` is whether sites are asked through Prefect; without, they must come by themselves.
    """
    try:
        coordinator = open_coordinator(Path(os.environ.get(FOLDER_VARIABLE, ".")))
        plan = load_job(coordinator.exchange, job, coordinator.authority).plan.plan
    except FedflowError as error:
        return Failed(name="Refused", message=f"{error.code}: there is no such job here")
    if plan.rounds:
        return Failed(
            name="Refused",
            message=f"the plan of {job} trains for {plan.rounds} rounds; run federated_training",
        )
    state: State[Any] = await federated_training.fn(job, sessions)
    if not state.is_completed():
        return state
    record = JobRunner(coordinator, job).records[-1]
    if not record.verdict:
        return Failed(name="Aborted", message="the job ended without a score")
    return Completed(message=f"{record.verdict} over {len(record.sites)} sites")
