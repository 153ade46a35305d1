"""The coordinator's view of site sessions: open, look, cancel, give up.

One session is one Prefect flow run at a site, for a whole job; rounds travel over the exchange.
Only states are read here, never their data: reading a result unpickles what a server chose.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Cancelling, Crashed, Pending, Scheduled
from prefect.tasks import Task

from fedflow.orchestration.configuration import SessionParameters
from fedflow.orchestration.registration import deployment_name
from fedflow.orchestration.scrub import scrubbed_client


class SessionState(NamedTuple):
    """A session's state: Prefect's type (``RUNNING``), its name (``Refused``) and the message."""

    type: str
    name: str
    message: str

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen in this session."""
        return self.type in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Opened(NamedTuple):
    """A session's flow run, new or there before, and how it stood when it was opened."""

    run: UUID
    state: SessionState


async def open_session(
    label: str, job: str, manifest_hex: str, attempt: int, client: PrefectClient | None = None
) -> UUID:
    """Start session number ``attempt`` (from 1) of ``job`` at site ``label``; its flow run's id.

    Inside a flow it becomes a subflow. The same arguments give the same run again, failed or not:
    count ``attempt`` up to start another.
    """
    if client is None:
        async with scrubbed_client() as own:
            return await open_session(label, job, manifest_hex, attempt, own)
    parameters = SessionParameters(job=job, manifest=manifest_hex)
    deployment = await client.read_deployment_by_name(deployment_name(label))
    return (await open_at(deployment.id, label, parameters, attempt, client)).run


async def open_at(
    deployment: UUID, label: str, parameters: SessionParameters, attempt: int, client: PrefectClient
) -> Opened:
    """The same where the deployment's id is known: two requests inside a flow, one outside."""
    job = parameters.job
    run = await client.create_flow_run_from_deployment(
        deployment,
        parameters=parameters.model_dump(),
        state=Scheduled(),
        name=f"{label} · session {attempt}",
        tags=["fedflow", f"job:{job}"],
        idempotency_key=f"fedflow/{job}/{parameters.manifest}/{label}/{attempt}",
        parent_task_run_id=await _placeholder(label, job, attempt, client),
    )
    return Opened(run.id, _plain(run.state))


async def _placeholder(label: str, job: str, attempt: int, client: PrefectClient) -> UUID | None:
    """The task that stands for the session in the flow it is opened from; made once."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    task: Task[[], None] = Task(fn=lambda: None, name=deployment_name(label), persist_result=False)
    task.task_key = f"fedflow.session.{label}"
    made = await client.create_task_run(
        task,
        context.flow_run.id,
        dynamic_key=f"{job}/{attempt}",
        name=f"{label} · session {attempt}",
        state=Pending(),
    )
    return made.id


async def session_state(flow_run_id: UUID, client: PrefectClient | None = None) -> SessionState:
    """How one session stands."""
    if client is None:
        async with scrubbed_client() as own:
            return await session_state(flow_run_id, own)
    return _plain((await client.read_flow_run(flow_run_id)).state)


async def session_states(flow_run_ids: Collection[UUID]) -> dict[UUID, SessionState]:
    """How many sessions stand, in one request per hundred; unknown ids are left out."""
    ids = list(flow_run_ids)
    out: dict[UUID, SessionState] = {}
    async with scrubbed_client() as client:
        for start in range(0, len(ids), 100):
            some = FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + 100]))
            for run in await client.read_flow_runs(flow_run_filter=some, limit=100):
                out[run.id] = _plain(run.state)
    return out


async def cancel_session(flow_run_id: UUID) -> None:
    """Ask the site's worker to end a session. Nothing happens to one that has ended."""
    async with scrubbed_client() as client:
        run = await client.read_flow_run(flow_run_id)
        if not _plain(run.state).is_final:
            await client.set_flow_run_state(flow_run_id, Cancelling(message="asked to stop"))


async def close_session(flow_run_id: UUID, name: str = "Dropped", message: str = "") -> None:
    """Mark the session of a site that went away as Crashed, named ``name``.

    A worker that still follows it lets go without reporting. Nothing happens to one that has ended.
    """
    async with scrubbed_client() as client:
        run = await client.read_flow_run(flow_run_id)
        if not _plain(run.state).is_final:
            crashed: State[None] = Crashed(name=name, message=message or "the site went away")
            await client.set_flow_run_state(flow_run_id, crashed, force=True)


def _plain(state: State[object] | None) -> SessionState:
    if state is None:
        return SessionState("PENDING", "Pending", "")
    return SessionState(state.type.value, state.name or "", state.message or "")
