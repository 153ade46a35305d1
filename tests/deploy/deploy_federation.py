"""A small real federation in folders: three sites' agents as processes, the coordinator here."""

from __future__ import annotations

import asyncio
import subprocess
import tomllib
from pathlib import Path

from deploy_roles import environment
from job_room import drive

from fedflow.coordinator.job import create_job
from fedflow.coordinator.runner import JobRunner
from fedflow.coordinator.settings import init_coordinator, open_coordinator
from fedflow.crypto.identity import Identity
from fedflow.learning.first_model import first_model
from fedflow.learning.plan import Plan, load_plan
from fedflow.learning.trivial import write_site
from fedflow.privacy.ledger import Ledger
from fedflow.site.config import init_site, open_site
from fedflow.site.policy import template

JOB = "deployed"
LABELS = ("alpha", "beta", "gamma")
PLANS = Path(__file__).parents[2] / "flows" / "plans"


def short_plan(folder: Path, rounds: int) -> Plan:
    """The plan ``trivial`` with fewer rounds and room for a busy machine."""
    text = (PLANS / "trivial.toml").read_text()
    assert tomllib.loads(text)["plan"]["rounds"] == 10
    text = text.replace("rounds = 10", f"rounds = {rounds}", 1)
    text = text.replace("round_seconds = 20", "round_seconds = 120", 1)
    text = text.replace("leg_seconds = 20", "leg_seconds = 120", 1)
    path = folder / "plan.toml"
    path.write_text(text)
    return load_plan(path)


class Federation:
    """Authority, coordinator, exchange, and a folder for each site; one signed job."""

    def __init__(self, folder: Path, *, rounds: int = 2) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        plan = short_plan(folder, rounds)
        exchange = folder / "exchange"
        authority = Identity.generate()
        coordinator = init_coordinator(
            folder / "coordinator", exchange=str(exchange), authority=authority.public
        )
        keys = {}
        for label in LABELS:
            policy = template(
                authority=authority.public.hex(),
                coordinators=[coordinator.public.hex()],
                workload="trivial",
                dataset="rows",
                path="rows.csv",
                epsilon=8.0,
                delta=plan.privacy.delta,
                plan=plan,
            )
            site = self.site(label)
            keys[label] = init_site(site, label=label, exchange=str(exchange), policy=policy).public
            write_site(site / "rows.csv", label)
        self.coordinator = open_coordinator(folder / "coordinator")
        first = first_model(plan)
        manifest = create_job(
            self.coordinator.exchange,
            job=JOB,
            plan=plan,
            sites=keys,
            coordinator=coordinator.public,
            authority=authority,
            initial_model=first.file,
            spec=first.spec,
            reference_persons=first.reference_persons,
        )
        self.manifest = manifest.digest()

    def site(self, label: str) -> Path:
        return self.folder / "sites" / label

    async def train(self, seconds: float = 200.0, *, close: bool = True) -> JobRunner:
        """All rounds of the job."""
        runner = JobRunner(self.coordinator, JOB)
        driven = drive(runner, join_seconds=seconds / 2, close=close)
        return await asyncio.wait_for(driven, seconds)

    def charges(self, label: str) -> int:
        """How many releases the ledger of a site shows."""
        site = open_site(self.site(label))
        ledger = Ledger.open(site.ledger_path, site.identity.public)
        try:
            return sum(entry.kind == "reserve" for entry in ledger.entries())
        finally:
            ledger.close()


class Process:
    """A process with its log, ended at the end of the ``with``."""

    def __init__(self, command: list[str], log: Path, **options: object) -> None:
        self.log = log
        with open(log, "ab") as out:
            options = {"env": environment(), "start_new_session": True, **options}
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **options
            )

    def alive(self) -> bool:
        return self.popen.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM, then whatever it needs; its exit status."""
        if self.alive():
            self.popen.terminate()
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
