"""The site daemon: holds the folder's lock, serves the worker's socket, runs one session a job.

It is the only process with the key, the ledger and the policy. It starts the training process and
talks to the exchange; it imports neither Prefect nor torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from fedflow.errors import FedflowError, Refusal
from fedflow.exchange import base, layout, open_exchange
from fedflow.privacy.accounting import load_accountants
from fedflow.privacy.ledger import Ledger
from fedflow.site.alarms import BudgetAlarms
from fedflow.site.config import SiteFolder, lock_site, open_site
from fedflow.site.mailbox import is_there
from fedflow.site.round import SiteServices
from fedflow.site.session import Session, SessionEnd
from fedflow.site.socket_protocol import (
    Accepted,
    BudgetLow,
    CancelRequest,
    End,
    Progress,
    Reply,
    Request,
    Send,
    SessionRequest,
    SocketServer,
    Status,
    serve,
)
from fedflow.site.training_client import TrainingClient
from fedflow.telemetry.endpoint import Pulse, serve_metrics
from fedflow.telemetry.logs import log_to
from fedflow.telemetry.metrics import SiteMetrics

log = logging.getLogger("fedflow.site")


@dataclass
class _Running:
    """A session and whoever watches it."""

    job: str
    manifest: bytes | None
    task: asyncio.Task[SessionEnd]
    watchers: set[asyncio.Queue[Reply]] = field(default_factory=set)
    round: int | None = None
    phase: str | None = None
    since: float = field(default_factory=time.monotonic)


class SiteAgent:
    """One site's daemon over an opened folder."""

    def __init__(self, site: SiteFolder) -> None:
        self._site = site
        self._ledger = Ledger.open(site.ledger_path, site.identity)
        self._trainer = TrainingClient(site.log_path)
        self._services = SiteServices(
            identity=site.identity,
            exchange=open_exchange(site.exchange, site.identity),
            ledger=self._ledger,
            facts=self._ledger.facts(),
            trainer=self._trainer,
            poll_seconds=site.settings.poll_seconds,
            folder=site.path,
            spot_check_chunks=site.settings.spot_check_chunks,
        )
        self._alarms = (
            BudgetAlarms(self._ledger, site.path / "alarms.json")
            if site.settings.budget_events
            else None
        )
        self._running: _Running | None = None
        self._listens = False
        self._pulse = Pulse()
        self._registry = CollectorRegistry()
        self._metrics = SiteMetrics(self._registry)

    def _unready(self) -> str | None:
        return None if self._listens else "the agent is starting"

    async def run(self, *, without_prefect: bool = False) -> None:
        """Serve until cancelled. Without Prefect, follow jobs announced in the exchange instead."""
        address, pulse = self._site.settings.metrics, self._pulse
        with serve_metrics(
            address, self._registry, health=pulse.complaint, ready=self._unready
        ) as port:
            if port is not None:
                log.info("metrics at port %d", port)
            await self._serve(without_prefect)

    async def _serve(self, without_prefect: bool) -> None:
        started = [asyncio.create_task(self._trainer.start())]
        started.append(asyncio.create_task(self._pulse.beat()))
        started.append(asyncio.create_task(asyncio.to_thread(load_accountants)))
        server: SocketServer | None = None
        try:
            server = await serve(
                self._site.socket, self._handle, group=self._site.settings.socket_group
            )
            self._listens = True
            log.info("site %s listens at %s", self._site.settings.label, self._site.socket)
            if without_prefect:
                await self._follow_exchange()
            else:
                await asyncio.Event().wait()
        finally:
            for task in started:
                task.cancel()
            if self._running is not None:
                self._running.task.cancel()
                await asyncio.gather(self._running.task, return_exceptions=True)
            if server is not None:
                await server.close()
            await self._trainer.close()
            self._ledger.close()

    async def _handle(self, request: Request, reply: Send) -> None:
        if isinstance(request, SessionRequest):
            await self._watch(self._open(request.job, bytes.fromhex(request.manifest)), reply)
        elif isinstance(request, CancelRequest):
            running = self._running
            if running is None or running.job != request.job:
                await reply(End(outcome="refused", code="no-session", reason="no such session"))
                return
            running.task.cancel()
            await reply(Accepted())
        else:
            running = self._running
            if running is not None and running.task.done():
                running = None
            await reply(
                Status(
                    site=self._site.settings.label,
                    job=running.job if running else None,
                    round=running.round if running else None,
                    phase=running.phase if running else None,  # type: ignore[arg-type]
                    seconds=int(time.monotonic() - running.since) if running else None,
                )
            )

    def _open(self, job: str, manifest: bytes | None) -> _Running:
        """The session of ``job``: the one that runs, or a new one. One job at a time."""
        running = self._running
        if running is not None and not running.task.done():
            if (running.job, running.manifest) == (job, manifest):
                return running
            raise Refusal("busy", f"the site is in job {running.job}")

        async def progress(number: int, phase: str) -> None:
            entry.round, entry.phase, entry.since = number, phase, time.monotonic()
            for queue in entry.watchers:
                queue.put_nowait(Progress(round=number, phase=phase))  # type: ignore[arg-type]
            self._metrics.phase(phase)
            if phase in ("masked", "done"):
                self._raise_alarms(entry)

        session = Session(self._site, self._services, job, manifest, progress)
        entry = _Running(job, manifest, asyncio.create_task(self._counted(session)))
        entry.task.add_done_callback(lambda _: self._trainer.forget())
        self._running = entry
        log.info("session of job %s opened", job)
        return entry

    async def _counted(self, session: Session) -> SessionEnd:
        self._metrics.opened()
        end = await session.run()
        self._metrics.ended(end.outcome, end.code)
        return end

    def _raise_alarms(self, running: _Running) -> None:
        """Put the alarms that are due to whoever watches; they stay due until one is told."""
        if self._alarms is None or not running.watchers:
            return
        try:
            for alarm in self._alarms.due():
                for queue in running.watchers:
                    queue.put_nowait(alarm)
        except (FedflowError, OSError, ValueError):
            log.exception("budget alarms")  # training does not depend on them

    async def _watch(self, running: _Running, reply: Send) -> None:
        """Tell one worker how the session goes; the session does not depend on being watched."""
        queue: asyncio.Queue[Reply] = asyncio.Queue()
        running.watchers.add(queue)
        try:
            await reply(Accepted())
            self._raise_alarms(running)
            while not running.task.done():
                news = asyncio.ensure_future(queue.get())
                await asyncio.wait({news, running.task}, return_when=asyncio.FIRST_COMPLETED)
                if news.done():
                    await self._tell(news.result(), reply)
                else:
                    news.cancel()
            while not queue.empty():
                await self._tell(queue.get_nowait(), reply)
            end = running.task.result()
            log.info("session of job %s ended: %s %s", running.job, end.outcome, end.code)
            await reply(End(outcome=end.outcome, code=end.code, reason=end.reason))  # type: ignore[arg-type]
        finally:
            running.watchers.discard(queue)

    async def _tell(self, news: Reply, reply: Send) -> None:
        if not isinstance(news, BudgetLow) or self._alarms is None:
            await reply(news)
        elif self._alarms.is_untold(news):  # it may have been put here twice
            await reply(news)
            with contextlib.suppress(OSError):  # told again then, under the same id
                self._alarms.told(news)

    async def _follow_exchange(self) -> None:
        """Join every job whose manifest appears in the exchange and admits this site.

        An exchange that is away, or that refuses this site, is asked again later.
        """
        seen: set[str] = set()
        exchange, refused = self._services.exchange, ""
        while True:
            try:
                for job in await base.names(exchange, "jobs"):
                    if job in seen:
                        continue
                    seen.add(job)
                    if await is_there(exchange, layout.end(job), layout.MAX_SEALED_BYTES):
                        continue
                    session = self._open(job, None).task
                    # not awaited itself: it would take our cancellation for its own, and end well
                    await asyncio.wait({session})
                    end = session.result()
                    log.info("job %s: %s %s %s", job, end.outcome, end.code, end.reason)
                    if end.outcome == "error":  # nothing was decided: try again
                        seen.discard(job)
                refused = ""
            except OSError:
                pass
            except FedflowError as error:
                if error.message != refused:  # once, not every second
                    log.warning("the exchange cannot be used: %s", error.message)
                refused = error.message
            await asyncio.sleep(max(self._services.poll_seconds, 1.0))


def run_agent(path: Path, *, without_prefect: bool = False) -> None:
    """Run the daemon of the site in ``path`` until SIGTERM or Ctrl-C.

    Raises Refusal when another agent holds the folder, InputError when the folder is not usable.
    """
    site = open_site(path)
    lock = lock_site(path)
    log_to(site.log_path, site.settings.log_format)

    async def main() -> None:
        agent = asyncio.create_task(SiteAgent(site).run(without_prefect=without_prefect))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await agent

    try:
        asyncio.run(main())
    finally:
        lock.close()
