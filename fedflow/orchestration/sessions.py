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
from prefect.deployments.flow_runs import arun_deployment
from prefect.states import Cancelling, Crashed

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
    run = await arun_deployment(
        deployment_name(label),
        client=client,
        parameters=parameters.model_dump(),
        flow_run_name=f"{label} · session {attempt}",
        tags=["fedflow", f"job:{job}"],
        idempotency_key=f"fedflow/{job}/{manifest_hex}/{label}/{attempt}",
        timeout=0,
        as_subflow=True,
    )
    return run.id


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
