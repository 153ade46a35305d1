"""The Prefect worker of type ``fedflow``: a site's door, and nothing but a door.

It asks a Prefect server for sessions, hands the two names in them to the site daemon, and reports
how they ended. It never executes, templates, imports or unpickles what a server sent: see
:mod:`fedflow.orchestration.configuration` for what is refused and ``scrub`` for what is removed.
Run it as a user without data or keys: ``prefect worker start --type fedflow --pool SITE``.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import anyio.abc
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import LogCreate
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.logging.loggers import PrefectLogAdapter
from prefect.settings.context import get_current_settings
from prefect.states import Cancelled, Crashed, Failed, Running
from prefect.utilities.engine import propose_state
from prefect.workers._worker_channel import WorkPoolWorkerChannel
from prefect.workers.base import BaseVariables, BaseWorker, BaseWorkerResult

from fedflow.errors import InputError, Misuse, Refusal
from fedflow.orchestration import scrub
from fedflow.orchestration.configuration import (
    WORKER_TYPE,
    FedflowJobConfiguration,
    authorise,
    base_job_template,
    socket_path,
)
from fedflow.orchestration.following import follow
from fedflow.orchestration.local_log import one_line
from fedflow.orchestration.session_run import Begun, Session, final_state, left_open
from fedflow.orchestration.wake import hints
from fedflow.site.socket_protocol import End, LinkLost, SiteLink

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.client.schemas.responses import WorkerFlowRunResponse

POLL_SECONDS = 5.0  # how soon a cancellation is noticed
ADOPT_SECONDS = 30.0  # how often runs that nobody follows are looked for
HEARTBEAT_POLLS = 4  # one heartbeat event every so many polls
CANCEL_SECONDS = 60.0  # what the daemon gets to end a cancelled session
RECONNECT_SECONDS = 180.0  # how long a daemon may be away
REPORT_SECONDS = 600.0  # how long the server may be away when a session ends
PROPOSE_SECONDS = 120.0
MAX_RUNS = 4  # sessions at a time: more are left with the server

_log = logging.getLogger("fedflow.worker")  # stays on this machine: no API handler listens to it
_log.addFilter(one_line)


class FedflowWorkerResult(BaseWorkerResult):
    """Says that a run was handled; how it ended is in its state."""


class FedflowWorker(BaseWorker[FedflowJobConfiguration, BaseVariables, FedflowWorkerResult]):
    """Opens sessions at the site daemon behind ``$FEDFLOW_SITE_SOCKET``."""

    type = WORKER_TYPE
    job_configuration = FedflowJobConfiguration
    _display_name = "Fedflow site"
    _description = "Opens federated sessions at a site. Ignores every command a server could send."

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["limit"] = min(kwargs.get("limit") or MAX_RUNS, MAX_RUNS)
        kwargs["base_job_template"] = base_job_template()  # for a pool this worker has to create
        self._followed: set[UUID] = set()
        self._ended: set[UUID] = set()  # while it was asked what is left open
        super().__init__(*args, **kwargs)
        home = get_current_settings().home
        self._begun = Begun(home / f"begun-{self._work_pool_name}.json")

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """A template that refuses all job variables."""
        return base_job_template()

    # Prefect's base class assigns these two; as properties they cannot be left unscrubbed or be
    # given a logger whose records, exception texts included, go to the API.
    @property
    def _client(self) -> PrefectClient | None:
        client: PrefectClient | None = self.__dict__.get("_scrubbed_client")
        return client

    @_client.setter
    def _client(self, client: PrefectClient | None) -> None:
        if client is not None:
            scrub.install(client)
        self.__dict__["_scrubbed_client"] = client

    @property
    def _logger(self) -> logging.Logger:
        return _log

    @_logger.setter
    def _logger(self, logger: object) -> None:
        pass

    def get_flow_run_logger(self, flow_run: FlowRun) -> PrefectLogAdapter:
        """A logger of this machine; what the API may see goes through ``Session.note``."""
        return PrefectLogAdapter(_log, extra={})

    async def setup(self) -> None:
        """Connect, and wake on events as a hint beside polling."""
        await super().setup()
        if self._runs_task_group is not None:
            self._wake_scope = anyio.CancelScope()
            self._runs_task_group.start_soon(self._wake_loop)
            self._runs_task_group.start_soon(self._adopt_loop)

    async def teardown(self, *exc_info: Any) -> None:
        """Stop listening, then stop as Prefect does."""
        for name in ("_wake_scope", "_adopt_scope"):
            if scope := getattr(self, name, None):
                scope.cancel()
        await super().teardown(*exc_info)

    async def _wake_loop(self) -> None:
        with self._wake_scope:
            # each site has its own small delay, so that SQLite is not written by all at once
            stagger = hashlib.sha256(self._work_pool_name.encode()).digest()[0] / 256
            while True:
                try:
                    async with aclosing(hints(self._wake_filter())) as events:
                        async for _ in events:
                            await anyio.sleep(stagger)
                            await self.get_and_submit_flow_runs()
                except Exception as exc:
                    _log.debug("wake loop: %s", type(exc).__name__)
                await anyio.sleep(POLL_SECONDS)

    async def _adopt_loop(self) -> None:
        """Take up what a worker of this pool that was killed has left open, at the start and on."""
        with anyio.CancelScope() as self._adopt_scope:
            while True:
                while self._work_pool is None:  # the server was away when this worker started
                    await anyio.sleep(1)
                self._ended.clear()
                try:
                    runs = await left_open(
                        self.client, self._work_pool_name, self._begun, 4 * MAX_RUNS
                    )
                    for flow_run in runs:
                        self._adopt(flow_run)
                except Exception as exc:
                    _log.debug("adopting: %s", type(exc).__name__)
                await anyio.sleep(ADOPT_SECONDS)

    def _adopt(self, flow_run: FlowRun) -> None:
        """Follow a run as if it had just been scheduled: by the same rules, from its beginning.

        The daemon attaches to the session where it runs already.
        """
        if flow_run.id in self._followed | self._submitting_flow_run_ids | self._ended:
            return
        group = self._runs_task_group
        with suppress(anyio.WouldBlock, RuntimeError):  # as many as it may have: later
            self.limiter.acquire_on_behalf_of_nowait(flow_run.id)
            if group is None:
                raise Misuse("the worker was not set up")
            self._followed.add(flow_run.id)
            _log.info("run %s was left open: following it", flow_run.id)
            group.start_soon(self._submit_run_and_capture_errors, flow_run)

    def _wake_filter(self) -> EventFilter:
        pool = f"prefect.work-pool.{self.work_pool.id}"
        return EventFilter(
            event=EventNameFilter(name=["prefect.flow-run.Scheduled"]),
            any_resource=EventAnyResourceFilter(id=[pool]),
        )

    def _record_work_pool_snapshot(self, work_pool: WorkPool) -> None:
        if work_pool.type != WORKER_TYPE:
            raise Refusal(
                "wrong-pool",
                f"work pool {self._work_pool_name!r} is not of type {WORKER_TYPE!r}: this worker "
                "serves no other pool. Register the site, or name another pool",
            )
        super()._record_work_pool_snapshot(work_pool)

    async def _setup_cancellation_observer(self) -> None:
        """Nothing: the base class would open a client of its own; see ``_supervise``."""

    def _ensure_worker_channel(self) -> None:
        # requests only: over the channel a server would push templates and orders to kill
        super()._ensure_worker_channel()
        if isinstance(self._worker_channel, WorkPoolWorkerChannel):
            self._worker_channel._transport.url = None

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """What Prefect does; an answer it cannot take is one failed poll, not the worker's end."""
        with scrub.answers():
            return await super().get_and_submit_flow_runs()

    async def sync_with_backend(self) -> None:
        """What Prefect does, in the same way."""
        with scrub.answers():
            await super().sync_with_backend()

    async def _submit_run(self, flow_run: FlowRun) -> None:
        # here Prefect lets an answer end the whole worker, or keep a run's place for good
        try:
            with scrub.answers():
                await super()._submit_run(flow_run)
        except Exception as exc:
            _log.warning("run %s cannot be taken: %s", flow_run.id, type(exc).__name__)
        finally:
            self._submitting_flow_run_ids.discard(flow_run.id)
            if flow_run.id not in self._followed:
                self._release_limit_slot(flow_run.id)

    async def _submit_run_and_capture_errors(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[int | Exception] | None = None
    ) -> BaseWorkerResult | Exception:
        try:
            return await super()._submit_run_and_capture_errors(flow_run, task_status)
        except Exception as exc:  # it captures those of its beginning only
            _log.warning("run %s cannot be told of: %s", flow_run.id, type(exc).__name__)
            return exc
        finally:
            self._followed.discard(flow_run.id)

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        # one told twice would end the worker where Prefect gives it a place
        told = (await super()._get_scheduled_flow_runs())[: 4 * MAX_RUNS]
        taken = set(self.limiter.statistics().borrowers)
        return list({e.flow_run.id: e for e in told if e.flow_run.id not in taken}.values())

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        with suppress(Pause), anyio.move_on_after(PROPOSE_SECONDS):  # the server may say "wait"
            return await super()._propose_pending_state(flow_run)
        return False

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Nothing: a session starts at once, and SQLite is spared a write."""

    async def _give_worker_labels_to_flow_run(self, flow_run_id: Any) -> None:
        """Nothing: the work pool already names the site."""

    async def _propose_crashed_state(
        self, flow_run: FlowRun, message: str, client: PrefectClient | None = None
    ) -> None:
        # the base class puts exception texts into its message
        await super()._propose_crashed_state(flow_run, "the worker could not start this session")

    async def run(
        self,
        flow_run: FlowRun,
        configuration: FedflowJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> FedflowWorkerResult:
        """Carry one session to its end and report it. Lets no exception out: see the states.

        ``Completed``; ``Failed`` named "Refused" with the daemon's code and sentence; ``Failed``
        named "SiteError" with a code or a type name; ``Cancelled``; ``Crashed`` named "Dropped".
        """
        if task_status is not None:
            task_status.started(f"fedflow-{self.get_name_slug()}")
        self._followed.add(flow_run.id)
        self._begun.add(flow_run.id)
        try:
            result = await self._run(flow_run, configuration)
            self._begun.discard(flow_run.id)
            return result
        finally:
            self._ended.add(flow_run.id)
            self._followed.discard(flow_run.id)

    async def _run(
        self, flow_run: FlowRun, configuration: FedflowJobConfiguration
    ) -> FedflowWorkerResult:
        result = FedflowWorkerResult(identifier=str(flow_run.id), status_code=0)
        session: Session | None = None
        final: State[Any] | None
        try:
            parameters = authorise(flow_run, configuration)
            session = Session(flow_run, self._work_pool_name, parameters, SiteLink(socket_path()))
            state = await self._propose(flow_run, Running())
            if state is not None and state.is_cancelling():
                with suppress(LinkLost):  # its worker was killed before it could say so
                    await session.link.cancel(parameters.job)
                final = Cancelled(message="cancelled on request")
            elif state is None or not state.is_running():
                return result
            else:
                session.note("session opened with the site daemon")
                final = await self._follow(session)
        except Refusal as exc:
            code = "no-site-socket" if isinstance(exc, InputError) else exc.code
            text = "" if isinstance(exc, InputError) else f": {exc.message}"
            final = Failed(name="Refused", message=f"{code}{text}")
        except Exception as exc:
            cause = exc.exceptions[0] if isinstance(exc, ExceptionGroup) else exc
            _log.error("session of run %s failed", flow_run.id, exc_info=exc)
            # the type only: the text may hold data
            final = Failed(name="SiteError", message=f"site error: {type(cause).__name__}")
        except BaseException:
            with anyio.move_on_after(3, shield=True), suppress(Exception):
                stopped: State[Any] = Crashed(name="Dropped", message="the worker was stopped")
                await self._propose(flow_run, stopped)
            raise
        if final is not None:
            await self._report(flow_run, final, session.logs if session else [])
        return result

    async def _follow(self, session: Session) -> State[Any] | None:
        """The state to report, or None when the run is no longer ours."""
        end: End | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._supervise, session, group.cancel_scope)
            end = await follow(
                session.link,
                session.parameters.job,
                session.parameters.manifest,
                session.news,
                reconnect_seconds=RECONNECT_SECONDS,
            )
            group.cancel_scope.cancel()
        if session.closed:
            return None
        if session.cancelling and (end is None or end.outcome in ("cancelled", "error")):
            return Cancelled(message="cancelled on request" + ("" if end else ", unconfirmed"))
        if end is None:
            return Failed(name="SiteError", message="site error: no-outcome")
        return final_state(end)

    async def _supervise(self, session: Session, scope: anyio.CancelScope) -> None:
        """Heartbeats for automations, and cooperative cancellation."""
        flow_run = session.flow_run
        give_up: float | None = None
        polls = 0
        while True:
            if polls % HEARTBEAT_POLLS == 0:
                emit_event(
                    "prefect.flow-run.heartbeat",
                    resource={
                        "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
                        "prefect.resource.name": flow_run.name,
                    },
                )
            polls += 1
            await anyio.sleep(POLL_SECONDS)
            state = None
            with suppress(Exception):  # the server may be away: the session goes on without it
                state = (await self.client.read_flow_run(flow_run.id)).state
            if state is not None and state.is_cancelling():
                if give_up is None:
                    session.cancelling, give_up = True, anyio.current_time() + CANCEL_SECONDS
                with suppress(LinkLost, Exception):
                    await session.link.cancel(session.parameters.job)
            elif state is not None and state.is_final():
                session.closed = True
                scope.cancel()
            if give_up is not None and anyio.current_time() > give_up:
                scope.cancel()

    async def _propose(
        self, flow_run: FlowRun, state: State[Any], force: bool = False
    ) -> State[Any] | None:
        with suppress(Abort, Pause, ObjectNotFound), anyio.fail_after(PROPOSE_SECONDS):
            return await propose_state(self.client, state, flow_run_id=flow_run.id, force=force)
        return None

    async def _report(self, flow_run: FlowRun, state: State[Any], logs: list[LogCreate]) -> None:
        """Propose a final state until the server takes it: it may be away for a while."""
        if logs:
            with suppress(Exception):
                await self.client.create_logs(logs)
        deadline = anyio.current_time() + REPORT_SECONDS
        while True:
            try:
                await self._propose(flow_run, state, force=state.is_cancelled())
                return
            except Exception as exc:
                _log.warning("cannot report run %s yet: %s", flow_run.id, type(exc).__name__)
                if anyio.current_time() > deadline:
                    return
            await anyio.sleep(10)
