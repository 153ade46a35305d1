"""Runs job after job over real processes, kills them at random, and starts them again."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_aim import EVENT_SECONDS, Aim, Moment, Shot, moment_of
from chaos_inotify import Watch
from chaos_units import Orphans, Unit, adopt_orphans, command_of, descendants
from chaos_world import World

from fedflow.coordinator.job import Job
from fedflow.errors import FedflowError
from fedflow.exchange import layout

#: Kills without a sum in between after which the federation is left alone until there is one: what
#: is tested is that it recovers, and from a kill every second nothing does.
PATIENCE = 8
#: A job, a sum, and what follows a job must be there after so long without any kill (seconds).
QUIET_SECONDS = 240.0
SESSION_SECONDS = 180.0
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
#: Restart of what ended by itself, as with ``RestartSec=1``.
RESTART_SECONDS = 1.0


@dataclass
class Tally:
    """What happened so far; kept in ``state.json`` so that a run can go on later."""

    kills: dict[str, int] = field(default_factory=dict)
    aimed: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # by themselves, by unit kind
    outcomes: dict[str, int] = field(default_factory=dict)
    jobs: int = 0
    storms: int = 0
    calms: int = 0
    zombies: int = 0  # runs of killed coordinators that Prefect still shows as running
    longest_stall: float = 0.0
    seconds: float = 0.0
    processor_seconds: float = 0.0  # of everything that was started

    @property
    def total(self) -> int:
        """Kills of all kinds."""
        return sum(self.kills.values())


def count(counts: dict[str, int], name: str) -> None:
    """One more of it."""
    counts[name] = counts.get(name, 0) + 1


class Stuck(Exception):
    """Something did not end in its time though nothing was killed any more."""


class Driver:
    """The federation's processes, and the hand that kills them."""

    def __init__(self, world: World, aim: Aim, units: list[Unit], tally: Tally) -> None:
        self.world, self.aim, self.tally = world, aim, tally
        self.units = {unit.name: unit for unit in units}
        self.orphans = Orphans()
        self.watch = Watch()
        self.api = ""  # of Prefect, without a slash at its end
        self.wrong: list[str] = []
        self.shooting = False
        self.goal = 0
        self._shot: Shot | None = None
        self._since_sum = 0
        self._last_sum = self._last_kill = time.monotonic()
        self._calm = False
        self.show: Callable[[], None] = lambda: None
        adopt_orphans()
        for folder in (world.store, world.folder / "sites", world.coordinator):
            folder.mkdir(parents=True, exist_ok=True)
            self.watch.add(folder)

    # ---- running

    def pump(self, seconds: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Keep everything running (and, while shooting, dying); whether ``done`` came true."""
        until = time.monotonic() + seconds
        look = 0.0
        while True:
            now = time.monotonic()
            self._keep_running(now)
            if now >= look:
                look = now + 0.05
                if done():
                    return True
                self.orphans.look({u.pid for u in self.units.values() if u.pid is not None})
                self.show()
            if now >= until:
                return False
            self._shoot(now)
            for seen in self.watch.wait(min(self._next_due(now), until - now, 0.05)):
                self._see(seen)

    def _next_due(self, now: float) -> float:
        due = [u.start_at - now for u in self.units.values() if u.process is None and u.wanted]
        if self._shot is not None and not self._shot.what:
            due.append(self._shot.at - now)
        return max(0.0, min(due, default=1.0))

    def _keep_running(self, now: float) -> None:
        for unit in self.units.values():
            if unit.process is not None and unit.process.poll() is not None:
                code = unit.process.returncode
                unit.process = None
                if unit.name == "coordinator" and code == 0:
                    unit.wanted = False
                    continue
                count(self.tally.ended, unit.kind)
                self.world.note(event="ended", unit=unit.name, status=code, time=time.time())
                unit.start_at = now + RESTART_SECONDS
            if unit.process is None and unit.wanted and now >= unit.start_at:
                unit.start()
                self._on(Moment("started", unit.name))

    def _see(self, seen: Any) -> None:
        moment = moment_of(seen, self.world)
        if moment is not None:
            self._on(moment)

    def _on(self, moment: Moment) -> None:
        if moment.what == "transcript":
            now = time.monotonic()
            self.tally.longest_stall = max(self.tally.longest_stall, now - self._last_sum)
            self._last_sum, self._since_sum, self._calm = now, 0, False
        shot = self._shot
        if self.shooting and shot is not None and shot.what == moment.what:
            if time.monotonic() < shot.at:
                return  # too early for it
            pause = time.perf_counter() + self.aim.delay()
            while time.perf_counter() < pause:
                pass
            self._fire(shot, moment.owner if shot.owner_too else "", moment.what)

    # ---- killing

    def _shoot(self, now: float) -> None:
        if not self.shooting:
            self._shot = None
            return
        if self._since_sum >= PATIENCE and not self._calm:
            self._calm = True
            self.tally.calms += 1
        if self._calm:
            if now - max(self._last_sum, self._last_kill) > QUIET_SECONDS:
                raise Stuck(f"no sum in {QUIET_SECONDS:.0f} s though nothing was killed any more")
            return
        if self._shot is None:
            self._shot = self.aim.shot(now)
        shot = self._shot
        if now >= shot.at and (not shot.what or now > shot.at + EVENT_SECONDS):
            self._fire(shot, "", "")

    def _fire(self, shot: Shot, owner: str, what: str) -> None:
        self._shot = None
        first = self.units.get(owner)
        hit = 0
        for number, kind in enumerate(shot.kinds):
            unit = first if number == 0 and first is not None else self._pick(kind)
            if unit is None:
                continue
            hit += self._kill(unit, kind, what)
        if hit > 1:
            self.tally.storms += 1

    def _pick(self, kind: str) -> Unit | None:
        wanted = "agent" if kind == "trainer" else kind
        running = [
            u
            for u in self.units.values()
            if u.kind == wanted and u.process is not None and u.wanted
        ]
        return self.aim.random.choice(running) if running else None

    def _kill(self, unit: Unit, kind: str, what: str) -> int:
        """Kill it; 1 when there was something to kill."""
        if kind == "trainer" and unit.kind == "agent":
            pids = [p for p in descendants(unit.pid or 0) if "trainer" in command_of(p)]
            if not pids:
                return 0
            os.kill(self.aim.random.choice(pids), signal.SIGKILL)
            name = "trainer"
        elif unit.kind == "postgres" and self.aim.random.random() < 0.3:
            pids = list(descendants(unit.pid or 0))
            if not pids:
                return 0
            os.kill(self.aim.random.choice(pids), signal.SIGKILL)
            name = "postgres"
        else:
            if not unit.kill():
                return 0
            unit.process = None
            unit.start_at = time.monotonic() + self.aim.restart()
            name = unit.kind
        count(self.tally.kills, name)
        self._since_sum += 1
        self._last_kill = time.monotonic()
        if what:
            count(self.tally.aimed, what)
        self.world.note(event="kill", kind=name, unit=unit.name, after=what, time=time.time())
        if self.tally.total >= self.goal:
            self.shooting = False
        return 1

    # ---- jobs

    def run_job(self, job: Job) -> None:
        """Coordinate one job to its end, killing meanwhile. Stuck when it does not end."""
        self.world.note(event="job", job=job.id, time=time.time())
        self._last_sum, self._since_sum, self._calm, began = time.monotonic(), 0, False, time.time()
        coordinator = self.units["coordinator"]
        coordinator.wanted, coordinator.start_at = True, 0.0
        self.shooting = self.tally.total < self.goal
        while not self.pump(5.0, lambda: not coordinator.wanted):
            if (
                not self.shooting
                and time.monotonic() - max(self._last_sum, self._last_kill) > QUIET_SECONDS
            ):
                raise Stuck(f"job {job.id} did not end: no sum in {QUIET_SECONDS:.0f} s")
        self.shooting = False
        self.world.note(event="job ended", job=job.id, seconds=time.time() - began)

    def wait_for_sessions(self, job: str) -> None:
        """Everything may come up again; then each session of the job must reach a final state.

        A coordinator that was killed leaves its own run ``Running``: it is the next one that goes
        on with the job. Automations close such runs of a deployment; here they are only counted.
        """
        rows: list[dict[str, Any]] = []
        last = 0.0

        def over() -> bool:
            nonlocal rows, last
            if time.monotonic() - last < 0.7:
                return False
            last = time.monotonic()
            try:
                rows = self._runs({"tags": {"all_": [f"job:{job}"]}})
            except (OSError, ValueError):
                return False
            return bool(rows) and all(row["state_type"] in FINAL for row in rows)

        if not self.pump(SESSION_SECONDS, over):
            still = [
                f"{r['name']}: {r['state_name']}" for r in rows if r["state_type"] not in FINAL
            ]
            self.wrong.append(f"{job}: sessions that never ended: {still or 'no answer'}")
            return
        runs = self._runs({"name": {"like_": job}})
        self.tally.zombies += sum(run["state_type"] not in FINAL for run in runs)
        if not any(run["state_type"] == "COMPLETED" for run in runs):
            self.wrong.append(f"{job}: no run of its coordinator is Completed")

    def _runs(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """Flow runs, as the server tells them."""
        body = json.dumps({"flow_runs": wanted, "limit": 200}).encode()
        request = urllib.request.Request(
            f"{self.api}/flow_runs/filter", body, {"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())
        return found

    def check_deadlines(self, job: Job, orders: dict[int, Any], grace: float) -> None:
        """Every order had a transcript, a successor or the job's end soon after its deadline."""
        for sequence, order in orders.items():
            ends = [
                self._stored_at(key)
                for key in (
                    layout.transcript(job.id, sequence),
                    layout.order(job.id, sequence + 1),
                    layout.end(job.id),
                )
            ]
            late = min(ends) - order.deadline / 1000
            if late > grace:
                self.wrong.append(f"{job.id}: order {sequence} hung {late:.0f} s past its deadline")

    def _stored_at(self, key: str) -> float:
        """When an object was put (seconds since the epoch); never, for one that was not."""
        try:
            return (self.world.store / key).stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    # ---- the end

    def start_all(self, seconds: float, ready: Callable[[], bool]) -> None:
        """Start what is wanted and wait until ``ready``."""
        if not self.pump(seconds, ready):
            raise Stuck("the federation did not come up; see the logs")

    def stop(self) -> None:
        """End everything: sites and workers first, databases last."""
        order = {"coordinator": 0, "worker": 1, "agent": 2, "relay": 3, "server": 4}
        for unit in sorted(self.units.values(), key=lambda u: order.get(u.kind, 5)):
            unit.wanted = False
            if unit.process is not None and unit.kind in ("worker", "agent"):
                unit.process.send_signal(signal.SIGTERM)  # all at once: it takes a moment
        for unit in sorted(self.units.values(), key=lambda u: order.get(u.kind, 5)):
            if not unit.stop(20.0):
                self.world.note(event="did not stop", unit=unit.name)
        for _ in range(20):
            self.orphans.look(set())
            time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a local HTTP server says 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def ended(world: World, job: str) -> bool:
    """Whether the job's end is in the exchange."""
    try:
        return world.stored().get(layout.end(job)) is not None
    except (OSError, FedflowError):
        return False


def log_paths(world: World) -> list[Path]:
    """Every log of every process."""
    own = [world.site(label) / "agent.log" for label in world.labels]
    return [*sorted((world.folder / "logs").glob("*.log")), *(p for p in own if p.exists())]
