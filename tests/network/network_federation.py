"""A federation over hosts: a relay, a coordinator with its Prefect server, and four sites.

Each is a process on a host of its own, so a link can be cut, slowed or made one-way while a real
job runs. The files are those of the chaos driver, and so is what is checked afterwards.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hosts import Host

sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))

from chaos_checks import Findings, JobCheck, check_price, read_ledger
from chaos_world import World, chaos_plan

from fedflow.coordinator.job import Job
from fedflow.exchange import layout
from fedflow.learning.plan import Plan

CHAOS = Path(__file__).parents[1] / "chaos"
SITES = ("site-1", "site-2", "site-3", "site-4")
HOSTS = ("hub", "lead", *SITES)
RELAY, SERVER = 8790, 4200
#: The longest any wait may take on a busy machine (seconds).
PATIENCE = 150.0
_LARGEST = chaos_plan(rounds=400, leg_seconds=30.0)
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_API_URL": f"http://127.0.0.1:{SERVER}/api",
}


def until(what: str, seen: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until ``seen``; AssertionError that names ``what`` when it does not come."""
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for: {what}"
        time.sleep(0.02)


@dataclass
class Training:
    """A job and the process that coordinates it."""

    federation: Federation
    job: Job
    process: subprocess.Popen[bytes]

    def put(self, sequence: int, leg: str, label: str) -> Callable[[], bool]:
        """Whether a site's message of a leg is in the relay's store."""
        key = layout.up(self.job.id, sequence, leg, self.job.index(label))
        return lambda: (self.federation.world.store / key).exists()

    def opened(self) -> list[int]:
        """Orders whose sum was opened, as published."""
        folder = self.federation.world.store / layout.rounds(self.job.id)
        return sorted(int(path.parent.name) for path in folder.glob("*/transcript"))

    def has_opened(self, count: int) -> Callable[[], bool]:
        """Whether so many sums were opened."""
        return lambda: len(self.opened()) >= count

    def end(self) -> None:
        """Wait for the coordinator's process; it must have completed the job."""
        assert self.process.wait(PATIENCE) == 0, self.federation.said("lead")

    def check(self) -> JobCheck:
        """Releases are charges, sums are those of the survivors, the model is that of the sums."""
        world, findings = self.federation.world, Findings()
        ledgers = {label: read_ledger(world, label, findings) for label in world.labels}
        for paid in ledgers.values():
            check_price(paid, findings)
        check = JobCheck(world, world.stored(), self.job, findings)
        outcome = check.run(ledgers)
        assert findings.wrong == []
        assert outcome == "completed"
        return check

    def labels(self, sites: tuple[int, ...]) -> set[str]:
        """Whose indices these are."""
        return {self.job.labels[site] for site in sites}


class Federation:
    """The processes of all hosts."""

    def __init__(self, folder: Path, hosts: dict[str, Host]) -> None:
        self.hosts, self.jobs = hosts, 0
        self.world = World.make(folder, _LARGEST, len(SITES))
        self.world.populate(f"http://{hosts['hub'].address}:{RELAY}")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.environment["PYTHONPATH"] = str(CHAOS.parents[1])
        (folder / "logs").mkdir()

    def start(self) -> None:
        """The relay, the agents and the Prefect server; they have answered when it returns."""
        world, hub, lead = self.world, self.hosts["hub"], self.hosts["lead"]
        serve = ["-m", "fedflow.cli.main", "exchange", "serve", str(world.store)]
        serve += [
            "--authority",
            world.authority.public.hex(),
            "--roster",
            str(world.write_members()),
        ]
        self._python("hub", *serve, "--host", hub.address, "--port", str(RELAY))
        home = world.folder / "prefect"
        home.mkdir()
        self.environment |= _QUIET | {"PREFECT_HOME": str(home)}
        self._python("lead", "-m", "prefect", "server", "start", "--port", str(SERVER))
        for label in SITES:
            script = [str(CHAOS / "chaos_witness.py"), str(world.witness(label))]
            self._python(label, *script, "site", "start", str(world.site(label)), "--no-prefect")
        for host, url in (
            (hub, f"{world.url}/readyz"),
            (lead, f"http://127.0.0.1:{SERVER}/api/health"),
        ):
            ask = ["curl", "--silent", "--fail", "--retry", "200", "--retry-delay", "1"]
            host.run(*ask, "--retry-connrefused", url, timeout=PATIENCE)
        until("all agents", lambda: all(world.socket(label).exists() for label in SITES))

    def train(self, rounds: int, leg_seconds: float) -> Training:
        """Publish one more job and start its coordinator."""
        world, self.jobs = self.world, self.jobs + 1
        raw = chaos_plan(rounds, leg_seconds).model_dump()
        raw["evaluation"] |= {"every": rounds}  # the last one only
        world.plan, url = Plan.model_validate(raw), world.url
        world.url = str(world.store)  # the relay's own folder: it is on a network we are not on
        job = world.add_job(f"net-{self.jobs}")
        world.url = url
        arguments = ["-m", "flows.training", job.id, "--no-sessions"]
        process = self._python("lead", *arguments, "--coordinator", str(world.coordinator))
        return Training(self, job, process)

    def _python(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, *arguments]
        return self.hosts[name].start(command, self.world.logs(name), self.environment)

    def said(self, name: str) -> str:
        """The end of what a host's processes printed."""
        return self.world.logs(name).read_text(errors="replace")[-3000:]

    def heal(self) -> None:
        """Every link as at first."""
        for host in self.hosts.values():
            host.heal()
