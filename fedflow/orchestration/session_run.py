"""What a worker knows of one session run, finds open at its pool, and says of an end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

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
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Completed, Failed

from fedflow.orchestration.budget_event import emit_budget_low
from fedflow.orchestration.configuration import SessionParameters
from fedflow.site.socket_protocol import BudgetLow, End, Progress, SiteLink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.schemas.objects import FlowRun

MAX_LOGS = 200
_MOST_BEGUN = 100
_FORBIDDEN = 403
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


class Begun:
    """The ids of runs a worker has begun and not reported, in a file that a kill leaves behind.

    It only helps to find them again: a file that is lost or broken is an empty one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: set[UUID] = set()
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._ids = {UUID(text) for text in json.loads(path.read_text())[:_MOST_BEGUN]}

    def __iter__(self) -> Iterator[UUID]:
        return iter(sorted(self._ids))

    def add(self, run: UUID) -> None:
        """It is followed from now on."""
        self._ids.add(run)
        self._write()

    def discard(self, run: UUID) -> None:
        """Its end was reported."""
        self._ids.discard(run)
        self._write()

    def _write(self) -> None:
        aside = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            aside.write_text(json.dumps([str(run) for run in self]))
            os.replace(aside, self._path)


async def left_open(client: PrefectClient, pool: str, begun: Begun, most: int) -> list[FlowRun]:
    """Runs of ``pool`` that some worker has begun, and none has ended; at most ``most``.

    A site's proxy does not let it ask for runs: then those that workers here had ``begun``.
    """
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=_BEGUN))
    try:
        return await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=state),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            limit=most,
        )
    except PrefectHTTPStatusError as error:
        if error.response.status_code != _FORBIDDEN:
            raise
    found: list[FlowRun] = []
    for run in list(begun)[:most]:
        try:
            flow_run = await client.read_flow_run(run)
        except ObjectNotFound:
            begun.discard(run)
            continue
        if flow_run.state is not None and flow_run.state.type in _BEGUN:
            found.append(flow_run)
        elif flow_run.state is not None and flow_run.state.is_final():
            begun.discard(run)
    return found


def final_state(end: End) -> State[Any]:
    """How the daemon's outcome looks in Prefect."""
    if end.outcome == "completed":
        return Completed(message=end.reason or "session completed")
    if end.outcome == "refused":
        return Failed(name="Refused", message=f"{end.code or 'refused'}: {end.reason}")
    if end.outcome == "cancelled":
        return Cancelled(message="cancelled by the site")
    return Failed(name="SiteError", message=f"site error: {end.code or 'unknown'}")
