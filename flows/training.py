"""Federated training: the main flow.

Per round: dispatch the model, train locally at every site, aggregate under pairwise masks, update
the global model, evaluate by masked sums. Run it on the coordinator's machine::

    python -m flows.training JOB --coordinator FOLDER
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from fedflow.coordinator.runner import JobRunner, RoundRecord
from fedflow.coordinator.settings import open_coordinator
from fedflow.errors import Aborted, FedflowError
from fedflow.orchestration.round_artifacts import publish_progress, publish_rounds
from fedflow.orchestration.session_book import SessionBook
from fedflow.orchestration.tasks import (
    LiveJob,
    dispatch_model,
    evaluate,
    live_job,
    secure_aggregate,
    train_local,
    update_global,
)

#: Names the coordinator's folder (key, exchange, checkpoints) on the machine that runs the flow.
FOLDER_VARIABLE = "FEDFLOW_COORDINATOR"
JOIN_SECONDS = 120.0
#: How long an aborted round waits for sites to come back before the job ends.
RETURN_SECONDS = 30.0


@flow(
    name="federated_training",
    flow_run_name="federated training · {job}",
    persist_result=False,
    log_prints=False,
    retries=0,
)
async def federated_training(job: str) -> State[Any]:
    """Train the model of ``job`` over its sites. ``job`` is the id in the signed manifest."""
    log = get_run_logger()
    coordinator = open_coordinator(Path(os.environ.get(FOLDER_VARIABLE, ".")))
    runner = JobRunner(coordinator, job)
    sessions = SessionBook(job, runner.job.digest.hex())
    with live_job(runner) as live:
        try:
            await sessions.start_all(runner.job.labels.values())
            present = await runner.wait_for_sites(JOIN_SECONDS)
            log.info("%d of %d sites joined", len(present), len(runner.job.labels))
            for number in range(runner.next_round, runner.job.plan.plan.rounds + 1):
                await training_round(live, sessions, number)
        except Aborted as error:
            runner.close("aborted", error.message)
            await sessions.finish(20)
            return Failed(name="Aborted", message=f"{error.code}: {error.message}")
        except BaseException:
            runner.close("failed", "the coordinator stopped")
            raise
        runner.close("completed", "all rounds of the plan are done")
        ends = await sessions.finish(30)
    for site, state in ends.items():
        log.info("%s ended as %s: %s", site, state.name, state.message)
    return Completed(
        message=f"{len(runner.records)} rounds, model {runner.model_digest.hex()[:12]}"
    )


async def training_round(live: LiveJob, sessions: SessionBook, number: int) -> None:
    """One round, ordered again when too few sites were left; Aborted when that did not help."""
    runner, job = live.runner, live.runner.job
    for attempt in range(1, runner.coordinator.settings.max_attempts + 1):
        runner.event("round", round=number, attempt=attempt)
        await dispatch_model(job.id, number, attempt)
        current = runner.current
        if current is None:
            raise Aborted("no-order", "the order could not be published")
        waiting = [
            train_local(job.id, number, site, return_state=True) for site in runner.awaited()
        ]
        await asyncio.gather(*waiting)
        opened = await secure_aggregate(job.id, number, return_state=True)
        if live.last is not None:
            break
        why = f"round {number}: {opened.message}"
        try:
            await runner.wait_for_sites(RETURN_SECONDS, enough=job.plan.cohort.minimum)
        except Aborted as error:
            raise Aborted(error.code, f"{why}; then {error.message}") from None
    else:
        raise Aborted("too-few-sites", f"{why} (attempt {attempt} of {attempt})")

    await update_global(job.id, number)
    runner.record(RoundRecord(number=number, attempts=attempt), live.last)
    if runner.evaluates(number):
        await evaluate(job.id, number, return_state=True)
    runner.checkpoint()
    record = runner.records[-1]
    for site in record.dropped:
        await sessions.replace(site, f"no masked update in round {number}")
    runner.event("round-done", **record.facts())
    await publish_progress(live)
    await publish_rounds(live)


async def _run(job: str) -> State[Any]:
    state: State[Any] = await federated_training(job, return_state=True)
    return state


def main() -> None:
    """Run the flow once, in this process."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.training",
        description="Run a federated training job once, as its coordinator.",
        epilog="example: python -m flows.training randhie-2026 --coordinator ./coordinator",
    )
    parser.add_argument("job", help="the id in the signed manifest")
    parser.add_argument("--coordinator", type=Path, required=True, help="the coordinator's folder")
    options = parser.parse_args()
    os.environ[FOLDER_VARIABLE] = str(options.coordinator.resolve())
    try:
        state = asyncio.run(_run(options.job))
    except FedflowError as error:
        raise SystemExit(f"fedflow: {error}") from None
    if not state.is_completed():
        raise SystemExit(f"fedflow: {state.name}: {state.message}")


if __name__ == "__main__":
    main()
