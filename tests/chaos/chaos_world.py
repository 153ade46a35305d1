"""A small federation on disk for the chaos driver: real folders, keys, policies and ledgers."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from fedflow.coordinator.job import Job, create_job, load_job, write_roster
from fedflow.coordinator.settings import init_coordinator
from fedflow.crypto.identity import Identity, PublicKey
from fedflow.exchange import Exchange, layout, open_exchange
from fedflow.learning.first_model import first_model
from fedflow.learning.plan import Plan, load_plan
from fedflow.learning.trivial import DATA_FILE, write_site
from fedflow.site.config import init_site
from fedflow.site.policy import template
from fedflow.wire.membership import FederationRoster, Member, Role
from fedflow.wire.sealed import seal

PLAN = Path(__file__).parents[2] / "flows" / "plans" / "trivial.toml"
#: So much that no number of kills can use it up: what is tested is that none of it is lost.
EPSILON = 100.0
#: Attempts at one round: a coordinator that is killed often must not run out of them.
MAX_ATTEMPTS = 100


def chaos_plan(rounds: int, leg_seconds: float) -> Plan:
    """The trivial plan, with deadlines so short that a lost site costs seconds."""
    raw = load_plan(PLAN).model_dump()
    raw["plan"] |= {"name": "chaos", "rounds": rounds}
    raw["evaluation"] |= {"every": 3}
    raw["deadlines"] |= {"round_seconds": leg_seconds, "leg_seconds": leg_seconds}
    return Plan.model_validate(raw)


@dataclass
class World:
    """Where everything is. ``url`` is the exchange as sites and coordinator are told of it."""

    folder: Path
    plan: Plan
    sockets: Path
    url: str = ""
    labels: list[str] = field(default_factory=list)
    keys: dict[str, PublicKey] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, plan: Plan, sites: int) -> World:
        """An empty, new folder; keys and folders are made by :meth:`populate`."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Short: the kernel counts every byte of a socket's path.
        world = cls(folder.resolve(), plan, Path(tempfile.mkdtemp(prefix="ffchaos-")))
        world.labels = [f"site-{number}" for number in range(1, sites + 1)]
        authority = Identity.generate()
        (world.folder / "authority").mkdir(mode=0o700)
        authority.save(world.folder / "authority" / "identity.pem")
        return world

    @classmethod
    def load(cls, folder: Path, plan: Plan) -> World:
        """The federation of an earlier run: its keys, its ledgers, its exchange."""
        raw = json.loads((folder / "world.json").read_text())
        world = cls(folder.resolve(), plan, Path(raw["sockets"]), raw["url"], raw["labels"])
        world.sockets.mkdir(mode=0o700, exist_ok=True)
        world.keys = {n: Identity.load(world.site(n) / "identity.pem").public for n in world.labels}
        return world

    def populate(self, url: str) -> None:
        """The coordinator's and the sites' folders, with the exchange at ``url``."""
        self.url = url
        authority = self.authority
        init_coordinator(self.coordinator, exchange=url, authority=authority.public)
        settings = self.coordinator / "coordinator.toml"
        text = settings.read_text().replace("max_attempts = 3 ", f"max_attempts = {MAX_ATTEMPTS} ")
        settings.write_text(text)
        policy = template(
            authority=authority.public.hex(),
            coordinators=[self.coordinator_key.public.hex()],
            workload="trivial",
            dataset="trivial",
            path=DATA_FILE,
            epsilon=EPSILON,
            delta=self.plan.privacy.delta,
            plan=self.plan,
        )
        for label in self.labels:
            path = self.site(label)
            socket = str(self.socket(label))
            identity = init_site(path, label=label, exchange=url, socket=socket, policy=policy)
            write_site(path / DATA_FILE, label)
            self.keys[label] = identity.public
        raw = {"sockets": str(self.sockets), "url": url, "labels": self.labels}
        (self.folder / "world.json").write_text(json.dumps(raw))

    @property
    def authority(self) -> Identity:
        """The key that signs jobs."""
        return Identity.load(self.folder / "authority" / "identity.pem")

    @property
    def coordinator_key(self) -> Identity:
        """The coordinator's key."""
        return Identity.load(self.coordinator / "identity.pem")

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def store(self) -> Path:
        """The exchange's objects as files: the exchange itself, or what a relay keeps."""
        return self.folder / "exchange"

    def site(self, label: str) -> Path:
        """A site's folder."""
        return self.folder / "sites" / label

    def socket(self, label: str) -> Path:
        """Its agent's socket."""
        return self.sockets / f"{label}.sock"

    def witness(self, label: str) -> Path:
        """Where its words are written down before they are masked."""
        return self.folder / "witness" / label

    def logs(self, name: str) -> Path:
        """The output of a process."""
        return self.folder / "logs" / f"{name}.log"

    def write_members(self) -> Path:
        """The federation's member list, signed: what a relay starts with."""
        now = int(time.time())
        period = {"not_before": now - 60, "not_after": now + 864_000, "revoked": 0}
        members = [Member(Role.SITE, n, self.keys[n].raw, **period) for n in self.labels]
        key = self.coordinator_key.public.raw
        members.append(Member(Role.COORDINATOR, "coordinator", key, **period))
        roster = FederationRoster("chaos", 1, now, tuple(members))
        path = self.folder / "authority" / "roster"
        path.write_bytes(seal(self.authority, roster))
        return path

    def add_job(self, job: str) -> Job:
        """Sign and publish one more job over all sites. OSError while a relay is down."""
        exchange = open_exchange(self.url, self.authority)
        first = first_model(self.plan)
        create_job(
            exchange,
            job=job,
            plan=self.plan,
            sites=self.keys,
            coordinator=self.coordinator_key.public,
            authority=self.authority,
            initial_model=first.file,
            spec=first.spec,
            reference_persons=first.reference_persons,
        )
        loaded = load_job(exchange, job, self.authority.public)
        write_roster(self.folder / "audit" / "roster.json", loaded, self.authority.public)
        return loaded

    def job(self, job: str) -> Job | None:
        """A job that was published before."""
        exchange = self.stored()
        if exchange.get(layout.manifest(job), layout.MAX_MANIFEST_BYTES) is None:
            return None
        return load_job(exchange, job, self.authority.public)

    def stored(self) -> Exchange:
        """What is in the exchange, read from its files: also while a relay is down."""
        return open_exchange(str(self.store))

    def close(self, *, keep: bool) -> None:
        """Remove the sockets, and the folder unless it is kept."""
        shutil.rmtree(self.sockets, ignore_errors=True)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def note(self, **facts: object) -> None:
        """One line for machines, in ``chaos.jsonl``."""
        with open(self.folder / "chaos.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\n")
