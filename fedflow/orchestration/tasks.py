"""The steps of a round as Prefect tasks, named so that a run in the UI reads like the protocol.

Tasks take names and numbers only; the live job is looked up in this process, so no model, sum or
key can end up in a parameter or a result. Nothing is cached or persisted by Prefect: what must
survive is in the exchange, the checkpoint and the sites' ledgers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from fedflow.coordinator.inbox import SiteAnswer
from fedflow.coordinator.runner import JobRunner
from fedflow.coordinator.secure_round import RoundResult
from fedflow.errors import Aborted, Misuse
from fedflow.wire.messages import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
#: How long a step waits for an exchange that is down; then the process ends, and not the job.
EXCHANGE_SECONDS = 600.0
_LIVE: dict[str, LiveJob] = {}


@dataclass
class LiveJob:
    """The job this process coordinates, the last sum that was opened, how many tasks were begun."""

    runner: JobRunner
    last: RoundResult | None = None
    tasks: int = 0


@contextmanager
def live_job(runner: JobRunner) -> Iterator[LiveJob]:
    """Make ``runner`` the live job of its id for the tasks of this process."""
    if runner.job.id in _LIVE:
        raise Misuse(f"job {runner.job.id} is already coordinated by this process")
    _LIVE[runner.job.id] = LiveJob(runner)
    try:
        yield _LIVE[runner.job.id]
    finally:
        del _LIVE[runner.job.id]


async def patiently(step: Callable[[], T]) -> T:
    """``step``, again and again while the exchange cannot be reached; then its OSError."""
    loop = asyncio.get_running_loop()
    until, wait = loop.time() + EXCHANGE_SECONDS, 0.2
    while True:
        try:
            return step()
        except OSError:
            if loop.time() >= until:
                raise
        await asyncio.sleep(wait)
        wait = min(2 * wait, 5.0)


def _live(job: str) -> LiveJob:
    if job not in _LIVE:
        raise Misuse(f"job {job} is not coordinated by this process")
    return _LIVE[job]


def round_task(
    name: str, run_name: str
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[..., Any]]:
    """A Prefect task that persists nothing, caches nothing and forwards no prints.

    The job's id is its first argument.
    """

    def make(step: Callable[P, Coroutine[Any, Any, R]]) -> Callable[..., Any]:
        @wraps(step)
        async def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            _live(str(args[0] if args else kwargs["job"])).tasks += 1
            return await step(*args, **kwargs)

        return task(
            name=name,
            task_run_name=run_name,
            persist_result=False,
            cache_policy=NO_CACHE,
            log_prints=False,
            retries=0,
        )(counted)

    return make


@round_task("dispatch_model", "dispatch model · round {number}")
async def dispatch_model(job: str, number: int, attempt: int = 1) -> State[Any]:
    """Sign the order for this round's model and publish both."""
    live = _live(job)
    await patiently(lambda: live.runner.dispatch(number, attempt, Kind.TRAIN))
    return Completed(message=f"model {live.runner.model_digest.hex()[:12]} ordered for training")


@round_task("train_local", "train {site} · round {number}")
async def train_local(job: str, number: int, site: str) -> State[Any]:
    """Follow one site's private training until its masked update arrives, or it does not."""
    runner = _live(job).runner
    current = runner.current
    if current is None:
        raise Misuse("no round is open")
    return state_of(await current.answers[runner.job.index(site)])


def state_of(answer: SiteAnswer) -> State[Any]:
    """What Prefect shows of a site's part in a round. One that rests has lost nothing."""
    if answer.outcome == "masked":
        return Completed(message=f"masked update after {answer.seconds:.1f} s")
    if answer.outcome == "resting":
        return Completed(name="Resting", message=answer.reason)
    if answer.outcome == "refused":
        return Failed(name="Refused", message=f"{answer.code}: {answer.reason}")
    return Failed(name="Dropped", message=answer.reason)


@round_task("secure_aggregate", "secure aggregate · round {number}")
async def secure_aggregate(job: str, number: int) -> State[Any]:
    """Recover the sum of the survivors' updates, and only the sum."""
    live = _live(job)
    try:
        live.last = await live.runner.collect()
    except Aborted as error:
        live.last = None
        return Failed(name="Aborted", message=f"{error.code}: {error.message}")
    outcome = live.last.outcome
    gone = len(outcome.delivered) - len(outcome.survivors)
    note = f", {gone} dropped site's masks recovered" if gone else ""
    return Completed(message=f"sum of {len(outcome.survivors)} masked updates{note}")


@round_task("update_global", "update global model · round {number} · {sites}")
async def update_global(job: str, number: int, sites: str) -> State[Any]:
    """Apply the mean update and publish the next model. ``sites`` is for the run's name."""
    live = _live(job)
    last = live.last
    if last is None:
        raise Misuse("there is no sum to apply")
    digest = await patiently(lambda: live.runner.update(last))
    return Completed(message=f"model {digest.hex()[:12]}")


@round_task("evaluate", "evaluate · round {number}")
async def evaluate(job: str, number: int, attempt: int = 1) -> State[Any]:
    """Score the new model on held-out persons at the sites, by one noised secure sum."""
    runner = _live(job).runner
    await patiently(lambda: runner.dispatch(number, attempt, Kind.EVALUATE))
    try:
        result = await runner.collect()
    except Aborted as error:
        return Failed(name="Aborted", message=f"{error.code}: {error.message}")
    record = runner.score(result)
    if not runner.job.plan.plan.rounds:
        runner.fill(record, result)  # no training round did
        return Completed(message=f"{record.verdict} (privacy noise)")
    for site, size in result.bytes_by_site.items():
        label = runner.job.labels[site]
        record.bytes[label] = record.bytes.get(label, 0) + size
    record.seconds += result.seconds
    get_run_logger().info("round %d: %s", number, record.verdict)
    return Completed(message=f"{record.verdict} (privacy noise)")
