"""Flow runs of a job whose processes were killed: Prefect shows them as running for ever.

Whoever holds the job's lease knows that nobody else coordinates it, so it may say what became of
them. They are marked as superseded, not as crashed: an automation would start a crashed one again.
"""

from __future__ import annotations

import contextlib
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Failed

from fedflow.orchestration.scrub import scrubbed_client

MESSAGE = "its process ended; another run goes on with the job"
_MOST = 200  # newest first: more are left for the next run to find


async def close_earlier(own: FlowRun, job: str) -> list[UUID]:
    """Mark the other runs of this flow that claim to run ``job`` as superseded; their ids.

    Best effort: what a server that is away was not told, the next run tells it.
    """
    closed: list[UUID] = []
    mine = FlowFilter(id=FlowFilterId(any_=[own.flow_id]))
    running = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    )
    superseded: State[None] = Failed(name="Superseded", message=MESSAGE)
    with contextlib.suppress(Exception):
        async with scrubbed_client() as client:
            for run in await client.read_flow_runs(
                flow_filter=mine, flow_run_filter=running, limit=_MOST
            ):
                if run.id == own.id or run.parameters.get("job") != job:
                    continue
                await client.set_flow_run_state(run.id, superseded, force=True)
                closed.append(run.id)
    return closed
