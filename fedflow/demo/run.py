"""``fedflow demo``, start to end. Reads top to bottom as what a person sees."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from fedflow.audit.verify import verify_folder
from fedflow.crypto.identity import Identity
from fedflow.demo.facts import collect_facts
from fedflow.demo.outage import Outage
from fedflow.demo.processes import Processes
from fedflow.demo.watch import EventTail, Watch
from fedflow.demo.world import World, build_world
from fedflow.learning.plan import Plan
from fedflow.orchestration.local_server import LocalPrefectServer
from fedflow.orchestration.worker_process import worker_command, worker_environment
from fedflow.privacy.ledger import Ledger
from fedflow.report.html import write_report
from fedflow.report.tables import print_summary


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    plan: Plan
    folder: Path
    epsilon: float
    drop_site: str | None
    keep_server: bool
    as_json: bool
    sites: int | None = None


class Demo:
    """The running demo and everything it must clean up."""

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Run it all; returns the facts. Ends every process it started, whatever happens."""
        options = self._options
        job = f"{options.plan.plan.name}-{time.strftime('%m%d-%H%M%S')}"
        with _one_interrupt(), ExitStack() as stack:
            world = build_world(options.folder, options.plan, job, options.epsilon, options.sites)
            stack.callback(world.close)
            rounds = options.plan.plan.rounds
            watch = Watch(self._console, world.labels, rounds, quiet=options.as_json)
            processes = Processes(world.folder / "logs")
            server = LocalPrefectServer(world.folder / "prefect")
            stack.callback(server.stop)
            stack.callback(processes.stop)
            with watch:
                watch.note(f"everything is written to {world.folder}")
                self._start(world, server, processes, watch)
                stopped = self._follow(world, processes, watch, server)
                watch.stage("baselines and report")
                facts = collect_facts(world, options.plan)
                watch.stage("auditing what the job left behind")
                facts |= {"stopped_early": stopped} | self._audit(world)
                # An address nobody answers at any more would only puzzle.
                facts["prefect_url"] = server.ui_url if options.keep_server else None
                facts["seconds_total"] = round(time.monotonic() - self._began, 1)
                facts["report"] = str(world.report)
                write_report(facts, world.report)
                (world.folder / "facts.json").write_text(json.dumps(facts, indent=2))
            processes.stop()
            self._show(facts)
            if options.keep_server:
                self._keep(server)
        return facts

    # ---- starting

    def _start(
        self, world: World, server: LocalPrefectServer, processes: Processes, watch: Watch
    ) -> None:
        # Agents load torch while the server starts: both take seconds.
        for label in world.labels:
            self._start_agent(world, processes, label)
        watch.stage("starting the Prefect server")
        server.start()
        watch.note(f"Prefect UI: {server.ui_url}")
        processes.require_alive(world.labels)
        for label in world.labels:
            self._start_worker(world, server, processes, label)
        environment = os.environ | server.environment()
        describes = self._options.plan.strategy.name == "moments"
        flow = "flows.analytics" if describes else "flows.training"
        processes.start(
            "coordinator",
            ["-m", flow, world.job.id, "--coordinator", str(world.coordinator.path)],
            dict(environment),
        )
        watch.stage("waiting for the sites to join")

    @staticmethod
    def _start_agent(world: World, processes: Processes, label: str) -> None:
        arguments = ["-m", "fedflow.cli.main", "site", "start", str(world.site(label))]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        processes.start(label, arguments, environment)

    @staticmethod
    def _start_worker(
        world: World, server: LocalPrefectServer, processes: Processes, label: str
    ) -> None:
        home = world.folder / "prefect" / "workers" / label
        home.mkdir(parents=True, exist_ok=True)
        environment = worker_environment(server.environment(), world.socket(label), home)
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "3"
        processes.start(f"{label}-worker", worker_command(label)[1:], environment)

    # ---- the job

    def _follow(
        self, world: World, processes: Processes, watch: Watch, server: LocalPrefectServer
    ) -> str | None:
        """Show the job until it ends, with the planned outage of one site on the way.

        Returns why it ended before its last round, None when it did not.
        """
        drop, rounds = self._options.drop_site, self._options.plan.plan.rounds
        strike = max(2, rounds // 10)  # early: a site takes half a minute to be back
        tail = EventTail(world.coordinator.events_path(world.job.id))
        outage = self._plan_outage(world, processes, strike)
        away, returning, rounds_done = False, False, 0
        stopped_early: str | None = None
        try:
            while True:
                ended = processes.code("coordinator")
                if ended is None:
                    up = [label for label in world.labels if outage is None or label != drop]
                    processes.require_alive([*up, *(f"{label}-worker" for label in up)])
                for event in tail.read():
                    watch.event(event)
                    if event["event"] == "end":
                        watch.stage("closing the sessions")
                        if event["outcome"] == "aborted" and rounds_done:
                            stopped_early = event["reason"]
                            watch.note(f"the job ended early: {stopped_early}", "red")
                    rounds_done += event["event"] == "round-done"
                    if returning and event["event"] == "site-present" and event["site"] == drop:
                        watch.note(f"{drop} has rejoined", "green")
                        returning = False
                    if outage is None or drop is None:
                        continue
                    if outage.done and not away and event["event"] == "message":
                        away = True
                        watch.note(f"power cut at {drop} in round {strike}, mid-protocol", "red")
                    if away and event["event"] == "round-done" and event["number"] >= strike:
                        watch.note(f"power is back at {drop}: it starts again", "yellow")
                        watch.site(drop, "starting again", "yellow")
                        self._start_agent(world, processes, drop)
                        self._start_worker(world, server, processes, drop)
                        outage.close()
                        outage, away, returning = None, False, True
                    if away:
                        watch.site(drop, "no power", "red")
                if ended is not None:
                    if stopped_early is None:
                        processes.require_success("coordinator")
                    return stopped_early
                time.sleep(0.05)
        finally:
            if outage is not None:
                outage.close()

    def _plan_outage(self, world: World, processes: Processes, strike: int) -> Outage | None:
        drop = self._options.drop_site
        if drop is None:
            return None

        def cut() -> None:
            processes.kill(drop)
            processes.kill(f"{drop}-worker")

        return Outage(world.coordinator.exchange, world.job.id, world.job.index(drop), strike, cut)

    # ---- afterwards

    def _audit(self, world: World) -> dict[str, Any]:
        for label in world.labels:
            site = world.site(label)
            ledger = Ledger.open(site / "ledger.sqlite", Identity.load(site / "identity.pem"))
            target = world.folder / "audit" / "ledgers" / f"{label}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            ledger.export(target)
            ledger.close()
        report = verify_folder(world.folder)
        return {"audit_ok": report.ok, "audit": report.as_dict()}

    def _show(self, facts: dict[str, Any]) -> None:
        if self._options.as_json:
            print(json.dumps(facts))
            return
        print_summary(facts, self._console)
        if not self._options.keep_server:
            self._console.print("to look at the runs in Prefect's UI: --keep-server", style="dim")

    def _keep(self, server: LocalPrefectServer) -> None:
        if not self._options.as_json:
            note = f"The Prefect UI stays open at {server.ui_url}; Ctrl-C ends it."
            self._console.print(note, style="bold")
        threading.Event().wait()


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Ctrl-C, SIGTERM, a closed terminal: each ends the demo once, cleaning up undisturbed."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
