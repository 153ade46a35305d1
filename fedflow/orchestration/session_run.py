"""What a worker knows of one session run, finds open at its pool, and says of an end."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import LogCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Completed, Failed

from fedflow.orchestration.budget_event import emit_budget_low
from fedflow.orchestration.configuration import SessionParameters
from fedflow.site.socket_protocol import BudgetLow, End, Progress, SiteLink

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

MAX_LOGS = 200
_BEGUN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


@dataclass
class Session:
    """One run while it is being followed."""

    flow_run: FlowRun
    site: str
    parameters: SessionParameters
    link: SiteLink
    cancelling: bool = False
    closed: bool = False  # somebody else gave the run a final state
    logs: list[LogCreate] = field(default_factory=list)

    def note(self, message: str) -> None:
        """Keep one line for the API. Callers pass fixed texts and small integers only."""
        if len(self.logs) < MAX_LOGS:
            self.logs.append(
                LogCreate(
                    name="fedflow.worker",
                    level=logging.INFO,
                    message=message,
                    timestamp=datetime.now(UTC),
                    flow_run_id=self.flow_run.id,
                )
            )

    def news(self, news: Progress | BudgetLow) -> None:
        """Keep what the daemon reached; pass on what it says of its budget."""
        if isinstance(news, BudgetLow):
            emit_budget_low(self.site, news)
        else:
            self.note(f"round {news.round}: {news.phase}")


async def left_open(client: PrefectClient, pool: str, most: int) -> list[FlowRun]:
    """Runs of ``pool`` that some worker has begun, and none has ended; at most ``most``."""
    begun = FlowRunFilterState(type=FlowRunFilterStateType(any_=_BEGUN))
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=begun),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        limit=most,
    )


def final_state(end: End) -> State[Any]:
    """How the daemon's outcome looks in Prefect."""
    if end.outcome == "completed":
        return Completed(message=end.reason or "session completed")
    if end.outcome == "refused":
        return Failed(name="Refused", message=f"{end.code or 'refused'}: {end.reason}")
    if end.outcome == "cancelled":
        return Cancelled(message="cancelled by the site")
    return Failed(name="SiteError", message=f"site error: {end.code or 'unknown'}")
