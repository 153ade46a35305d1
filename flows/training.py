"""Federated training: the main flow.

Per round: dispatch the model, train locally at every site, aggregate under pairwise masks, update
the global model, evaluate by masked sums. Run it on the coordinator's machine::

    python -m flows.training JOB --coordinator FOLDER

A coordinator that stops, is killed or loses its server leaves the job as it is: the same command,
or another run of the deployment, goes on with it. Only a decision ends a job: all rounds are done,
a round has no sum in any attempt, or somebody cancels the run in Prefect.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import traceback
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.states import Cancelled, Completed, Crashed, Failed

from fedflow.coordinator.lease import held
from fedflow.coordinator.observed import observed
from fedflow.coordinator.runner import JobRunner, RoundRecord, Superseded
from fedflow.coordinator.settings import open_coordinator
from fedflow.coordinator.stopping import ALL_ROUNDS
from fedflow.errors import Aborted, FedflowError, InputError, Misuse
from fedflow.orchestration import control as controls
from fedflow.orchestration.control import Control, controlled
from fedflow.orchestration.delivery import until_recorded
from fedflow.orchestration.earlier_runs import close_earlier
from fedflow.orchestration.events import announce_job, announce_round, announce_site, code_of
from fedflow.orchestration.round_artifacts import publish_end, publish_progress, publish_rounds
from fedflow.orchestration.session_book import SessionBook
from fedflow.orchestration.tasks import (
    LiveJob,
    dispatch_model,
    evaluate,
    live_job,
    patiently,
    secure_aggregate,
    train_local,
    update_global,
)
from fedflow.wire.messages import Kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Names the coordinator's folder (key, exchange, checkpoints) on the machine that runs the flow.
FOLDER_VARIABLE = "FEDFLOW_COORDINATOR"
#: How long sites may take to join, from when all were asked.
JOIN_SECONDS = 120.0
#: How long asking them may take: with its server away a job goes on with sites that need none.
OPEN_SECONDS = 120.0
#: How long an aborted round waits for sites to come back before the job ends.
RETURN_SECONDS = 30.0
#: How long a process whose job is over waits for its server, to report that.
REPORT_SECONDS = 600.0

_log = logging.getLogger("fedflow.coordinator")


@flow(
    name="federated_training",
    flow_run_name="federated training · {job}",
    persist_result=False,
    log_prints=False,
    retries=0,
)
async def federated_training(job: str, sessions: bool = True) -> State[Any]:
    """Train the model of ``job`` over its sites. ``job`` is the id in the signed manifest.

    ``sessions`` is whether sites are asked through Prefect; without, they must come by themselves
    (``fedflow site start --no-prefect``).
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise Misuse("the flow runs outside of Prefect")
    try:
        coordinator = open_coordinator(Path(os.environ.get(FOLDER_VARIABLE, ".")))
        async with controlled(context.flow_run.id) as control:
            with held(coordinator.lease_path(job), job):
                closing = asyncio.create_task(close_earlier(context.flow_run, job))
                runner = await patiently(lambda: JobRunner(coordinator, job))
                with live_job(runner) as live:
                    async with observed(runner):
                        state = await _coordinate(live, control, sessions)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            told = state.name != "Stopped" and await control.until_reachable(REPORT_SECONDS)
            if told and not state.is_cancelled():
                await until_recorded(context.flow_run.id, live.tasks, REPORT_SECONDS)
    except controls.Suspended as suspended:
        raise Pause(state=suspended.state) from None
    except FedflowError as error:
        _log.error("%s", error.message)
        print(f"fedflow: {error.message}", file=sys.stderr)
        # the message of an input error quotes a file of this machine
        text = error.code if isinstance(error, InputError) else f"{error.code}: {error.message}"
        name = "Superseded" if isinstance(error, Superseded) else "Refused"
        return Failed(name=name, message=text)
    except OSError as error:
        _log.error("the exchange cannot be reached: %s", error)
        return _resumable("the exchange cannot be reached")
    except Exception as error:
        _log.exception("the coordinator failed")
        traceback.print_exc()  # here, and not in Prefect: the text may hold anything
        return Failed(message=f"{type(error).__name__}; the job can be resumed")
    return state


async def _coordinate(live: LiveJob, control: Control, sessions: bool) -> State[Any]:
    """The job to its end, or until this process is asked to leave it."""
    runner, job = live.runner, live.runner.job
    book = SessionBook(job.id, job.digest.hex(), job.labels.values() if sessions else ())
    end = await patiently(lambda: runner.end)
    if end is not None:
        before = end.reason == ALL_ROUNDS
        why = end.reason if before else f"it had ended before: {end.reason}"
        return _state_of(runner, end.outcome, why)
    async with _kept(book):
        try:
            early = await control.guard(_rounds(live, book, control))
            outcome, reason = "completed", early or ALL_ROUNDS
        except Aborted as error:
            outcome, reason = "aborted", f"{error.code}: {error.message}"
        except controls.Cancelled:
            outcome, reason = "cancelled", "cancelled in Prefect"
        except controls.Stopped:
            runner.event("stopped")
            return _resumable("the coordinator was stopped")
        finally:
            await runner.give_up()
        await patiently(lambda: runner.close(outcome, reason))
        told = "" if reason == ALL_ROUNDS else reason
        await publish_end(live, outcome, told)
        await announce_job(job, _word(outcome), told)
        await _tell_sessions(book, 30.0 if outcome == "completed" else 20.0)
    return _state_of(runner, outcome, reason)


@asynccontextmanager
async def _kept(book: SessionBook) -> AsyncIterator[None]:
    keeping = asyncio.create_task(book.keep())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def _tell_sessions(book: SessionBook, seconds: float) -> None:
    log = get_run_logger()
    for site, state in (await book.finish(seconds)).items():
        log.info("%s ended as %s: %s", site, state.name, state.message)


def _word(outcome: str) -> Any:
    return outcome if outcome in ("completed", "aborted", "cancelled") else "failed"


def _state_of(runner: JobRunner, outcome: str, reason: str) -> State[Any]:
    if outcome == "completed":
        model = runner.model_digest.hex()[:12]
        why = "" if reason == ALL_ROUNDS else f"; {reason}"
        return Completed(message=f"{len(runner.records)} rounds, model {model}{why}")
    if outcome == "cancelled":
        return Cancelled(message=f"after {len(runner.records)} rounds: {reason}")
    return Failed(name="Aborted" if outcome == "aborted" else "Failed", message=reason)


def _resumable(why: str) -> State[Any]:
    return Crashed(name="Stopped", message=f"{why}; the job can be resumed")


async def _rounds(live: LiveJob, book: SessionBook, control: Control) -> str | None:
    """Everything from where the job is to its last round. Aborted when it cannot go on.

    Why it is done before the plan's last round, if it is.
    """
    log, runner = get_run_logger(), live.runner
    taken = await patiently(runner.resume)
    if taken:
        numbers = ", ".join(str(order.sequence) for order in taken)
        log.info("went on after sums that were published before: of order %s", numbers)
    if not runner.records:
        await announce_job(runner.job, "started")
    await _boundary(runner, control)
    if runner.to_evaluate is None and runner.next_round > runner.job.plan.plan.rounds:
        return None
    sites = len(runner.job.labels)
    present = await _joined(runner, book)
    log.info("%d of %d sites joined", len(present), sites)
    if runner.to_evaluate is not None:
        await finish_round(live, book)
    for number in range(runner.next_round, runner.job.plan.plan.rounds + 1):
        await _boundary(runner, control)
        if (early := await patiently(runner.stop_reason)) is not None:
            log.info("the job ends before round %d: %s", number, early)
            return early
        await training_round(live, number)
        await finish_round(live, book)
    return None


async def _joined(runner: JobRunner, book: SessionBook) -> set[int]:
    """The sites that are there, once all are or those that were asked had time to come."""
    until = asyncio.get_running_loop().time() + OPEN_SECONDS
    while not book.complete.is_set() and asyncio.get_running_loop().time() < until:
        if len(runner.look_for_sites()) == len(runner.job.roster):
            break
        with suppress(TimeoutError):
            await asyncio.wait_for(book.complete.wait(), 0.1)
    return await runner.wait_for_sites(JOIN_SECONDS)


async def _boundary(runner: JobRunner, control: Control) -> None:
    if await control.boundary():
        get_run_logger().info("resumed before round %d", runner.next_round)


async def training_round(live: LiveJob, number: int) -> None:
    """One round, ordered again when too few sites were left; Aborted when that did not help."""
    runner, job = live.runner, live.runner.job
    why, attempt = f"round {number} was interrupted too often", 0
    for attempt in runner.attempts(number, Kind.TRAIN):
        runner.event("round", round=number, attempt=attempt)
        opened = await _attempt(live, number, attempt)
        if live.last is not None:
            break
        why = f"round {number}: {opened.message}"
        try:
            await runner.wait_for_sites(RETURN_SECONDS, enough=job.plan.cohort.minimum)
        except Aborted as error:
            raise Aborted(error.code, f"{why}; then {error.message}") from None
    else:
        raise Aborted("too-few-sites", f"{why} (after {attempt} attempts)")
    sites = f"{len(live.last.outcome.survivors)} of {len(job.roster)} sites"
    await update_global(job.id, number, sites)
    runner.record(RoundRecord(number=number, attempts=attempt), live.last)
    runner.checkpoint()


async def _attempt(live: LiveJob, number: int, attempt: int) -> State[Any]:
    """One order for a round, shown as tasks; the state of its sum."""
    runner, job = live.runner, live.runner.job
    live.last = None
    await dispatch_model(job.id, number, attempt)
    waiting = [train_local(job.id, number, site, return_state=True) for site in runner.awaited()]
    await asyncio.gather(*waiting)
    opened: State[Any] = await secure_aggregate(job.id, number, return_state=True)
    return opened


async def finish_round(live: LiveJob, book: SessionBook) -> None:
    """The evaluation after a round, if the plan has one, and everything that is told of it."""
    runner, job = live.runner, live.runner.job
    if (number := runner.to_evaluate) is not None:
        # One that was aborted is not tried again: nothing builds on a score.
        for attempt in runner.attempts(number, Kind.EVALUATE, 1):
            await evaluate(job.id, number, attempt, return_state=True)
            break
        runner.records[-1].finished = True
        runner.checkpoint()
    record = runner.records[-1]
    runner.event("round-done", **record.facts())
    await announce_round(job, record)
    for site, reason in record.refused.items():
        await announce_site(job, site, "refused", record.number, code_of(reason))
    for site in record.dropped:
        book.lost(site, f"no masked update in round {record.number}")
        await announce_site(job, site, "dropped", record.number, "dropped")
    await publish_progress(live)
    await publish_rounds(live)


def main(coordinating: Any = federated_training, module: str = "flows.training") -> None:
    """Run a flow that coordinates a job once, in this process; ``module`` is where it is."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description="Run a job over its sites, or go on with it, as its coordinator.",
        epilog=f"Example: python -m {module} randhie-2026 --coordinator ./coordinator."
        " Ctrl-C stops this process and not the job; the same command goes on with it.",
    )
    parser.add_argument("job", help="the id in the signed manifest")
    parser.add_argument("--coordinator", type=Path, required=True, help="the coordinator's folder")
    parser.add_argument(
        "--no-sessions",
        action="store_true",
        help="ask no site through Prefect: all of them run with --no-prefect",
    )
    options = parser.parse_args()
    os.environ[FOLDER_VARIABLE] = str(options.coordinator.resolve())
    again = " ".join([sys.executable, "-m", module, *sys.argv[1:]])
    try:
        state: State[Any] = asyncio.run(
            coordinating(options.job, not options.no_sessions, return_state=True)
        )
    except FedflowError as error:
        raise SystemExit(f"fedflow: {error}") from None
    except (Pause, KeyboardInterrupt):
        raise SystemExit(f"fedflow: the job waits. Go on with: {again}") from None
    except Exception as error:
        kind = type(error).__name__
        raise SystemExit(
            f"fedflow: Prefect did not answer when this run began or ended ({kind}). What was done"
            f" is in the coordinator's folder and the exchange. Go on with: {again}"
        ) from None
    if state.name == "Stopped":
        raise SystemExit(f"fedflow: {state.message}. Go on with: {again}")
    if not state.is_completed():
        raise SystemExit(f"fedflow: {state.name}: {state.message}")


if __name__ == "__main__":
    main()
