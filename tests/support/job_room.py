"""A whole federation in one process, without Prefect: real sessions, real rounds, fake training.

Sites and coordinator share an exchange through a :class:`Spy` each, so that a test can see, delay
or break any single step of any single party. Ledgers are real files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plans

from fedflow.coordinator.job import create_job, load_job
from fedflow.coordinator.runner import JobRunner, RoundRecord
from fedflow.coordinator.settings import CoordinatorFolder, CoordinatorSettings
from fedflow.coordinator.stopping import ALL_ROUNDS
from fedflow.crypto.identity import Identity
from fedflow.errors import Aborted
from fedflow.exchange import MemoryExchange, layout
from fedflow.learning.model_file import ModelSpec, encode_model
from fedflow.learning.plan import Plan
from fedflow.learning.server_state import initial_state, state_spec
from fedflow.privacy.ledger import Ledger
from fedflow.site.config import SiteFolder, SiteSettings
from fedflow.site.policy import load_policy, template
from fedflow.site.round import SiteServices
from fedflow.site.session import Session
from fedflow.site.trainer import Trained
from fedflow.wire.messages import Kind, Order
from fedflow.wire.sealed import seal

JOB = "test-job"
LABELS = ("alpha", "beta", "delta", "gamma")
DIMENSION = 40


def make_plan(**changes: Any) -> Plan:
    return plans.make_plan(
        **{**plans.SMALL, "deadlines__round_seconds": 4.0, "deadlines__leg_seconds": 3.0, **changes}
    )


class PowerCut(BaseException):
    """The process is gone: not an Exception, so nobody handles it politely."""


class Spy:
    """One party's view of the shared exchange. ``before_put(key, payload)`` may raise."""

    remote = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.puts: list[tuple[str, bytes]] = []
        self.before_put: Callable[[str, bytes], None] = lambda key, payload: None
        self.after_put: Callable[[str, bytes], None] = lambda key, payload: None
        self.on_get: Callable[[str, bytes | None], bytes | None] = lambda key, data: data

    def put(self, key: str, payload: bytes) -> None:
        self.before_put(key, payload)
        self.inner.put(key, payload)
        self.puts.append((key, payload))
        self.after_put(key, payload)

    def get(self, key: str, limit: int = 1 << 31) -> bytes | None:
        return self.on_get(key, self.inner.get(key, limit))

    def list(self, prefix: str) -> list[str]:
        return self.inner.list(prefix)


class Asking:
    """An order as a broken site reads it: it asks everybody."""

    def __init__(self, order: Order) -> None:
        self._order = order

    def __getattr__(self, name: str) -> Any:
        return getattr(self._order, name)

    def invites(self, site: int) -> bool:
        return True


class FakeTrainer:
    """Gives vectors at once; ``fail`` is raised instead. Keeps what it gave."""

    def __init__(self, seed: int, dimension: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.dimension = dimension
        self.given: list[np.ndarray] = []
        self.tasks: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.seconds = 0.0

    async def run(
        self,
        task: str,
        *,
        workload: str,
        data: Path,
        plan: bytes,
        model: bytes = b"",
        own: bytes = b"",
        sites: int = 0,
        value_range: float = 0.0,
    ) -> Trained:
        self.tasks.append(task)
        await asyncio.sleep(self.seconds)
        if task in self.fail:
            raise self.fail[task]
        if task == "check":
            return Trained(np.empty(0, np.float32))
        if task == "train":
            vector = self.rng.normal(0, 1, self.dimension).astype(np.float32)
        else:
            length = Plan.from_canonical(plan).vector_length(Kind.EVALUATE, 0)
            vector = self.rng.integers(5_000, 90_000, length).astype(np.int64)
        self.given.append(vector)
        return Trained(vector)


class Site:
    """One site and its sessions, which may be cut off and started again."""

    def __init__(self, room: Room, label: str, policy: str, seed: int) -> None:
        self.room, self.label = room, label
        self.path = room.folder / "sites" / label
        self.path.mkdir(parents=True)
        self.identity = Identity.generate()
        (self.path / "policy.toml").write_text(policy)
        (self.path / "policy.toml").chmod(0o600)
        self.ledger = Ledger.create(self.path / "ledger.sqlite", self.identity, label)
        self.exchange = Spy(room.exchange)
        self.trainer: Any = FakeTrainer(seed, room.dimension)
        self.phases: list[tuple[int, str]] = []
        self.task: asyncio.Task[Any] | None = None

    @property
    def index(self) -> int:
        return sorted(self.room.sites).index(self.label)

    def folder(self) -> SiteFolder:
        settings = SiteSettings(
            label=self.label, exchange="unused", socket="agent.sock", poll_seconds=0.005
        )
        policy = load_policy(self.path / "policy.toml")
        return SiteFolder(self.path, settings, policy, self.identity)

    def session(self, job: str = JOB, manifest: bytes | None = None) -> Session:
        async def progress(number: int, phase: str) -> None:
            self.phases.append((number, phase))

        services = SiteServices(
            identity=self.identity,
            exchange=self.exchange,
            ledger=self.ledger,
            facts=self.ledger.facts(),
            trainer=self.trainer,
            poll_seconds=0.005,
            folder=self.path,
            spot_check_chunks=self.room.spot_check_chunks,
        )
        return Session(self.folder(), services, job, manifest, progress)

    def start(self, job: str = JOB, manifest: bytes | None = None) -> asyncio.Task[Any]:
        self.task = asyncio.create_task(self.session(job, manifest).run())
        return self.task

    def restart(self) -> asyncio.Task[Any]:
        """A new process over the same folder: nothing of the old one but its files."""
        self.ledger.close()
        self.ledger = Ledger.open(self.path / "ledger.sqlite", self.identity)
        self.exchange = Spy(self.room.exchange)
        return self.start()

    def cut_at_put(self, pattern: str, *, after: bool = False) -> None:
        """Lose power when putting a key that contains ``pattern`` (or right after it)."""

        def hook(key: str, payload: bytes) -> None:
            if pattern in key:
                raise PowerCut(key)

        if after:
            self.exchange.after_put = hook
        else:
            self.exchange.before_put = hook

    def charges(self) -> list[Any]:
        return [e for e in self.ledger.entries() if e.kind == "reserve"]


class Room:
    """Authority, coordinator, exchange and sites of one job."""

    def __init__(
        self,
        folder: Path,
        plan: Plan | None = None,
        *,
        exchange: Any = None,
        labels: tuple[str, ...] = LABELS,
        epsilon: float = 8.0,
        policy_plan: Plan | None = None,
        max_attempts: int = 2,
        arrays: dict[str, np.ndarray] | None = None,
        trainer: Callable[[Site], Any] | None = None,
        valid_seconds: int = 3600,
        spot_check_chunks: int = 1,
    ) -> None:
        self.spot_check_chunks = spot_check_chunks
        self.folder, self.plan = folder, plan or make_plan()
        self.exchange = MemoryExchange() if exchange is None else exchange
        arrays = arrays or {"w": np.zeros((DIMENSION // 4, 4), np.float32)}
        self.spec = state_spec(ModelSpec.of(arrays), self.plan)
        self.dimension = ModelSpec.of(arrays).dimension
        self.authority, self.coordinator_identity = Identity.generate(), Identity.generate()
        policy = template(
            authority=self.authority.public.hex(),
            coordinators=[self.coordinator_identity.public.hex()],
            workload=self.plan.plan.workload,
            dataset="visits",
            path="visits.csv",
            epsilon=epsilon,
            delta=1e-5,
            plan=policy_plan or self.plan,
        )
        self.sites: dict[str, Site] = {}
        for number, label in enumerate(labels):
            self.sites[label] = Site(self, label, policy, seed=number)
            if trainer is not None:
                self.sites[label].trainer = trainer(self.sites[label])
        self.model = encode_model(initial_state(arrays, self.plan))
        self.manifest = create_job(
            self.exchange,
            job=JOB,
            plan=self.plan,
            sites={label: site.identity.public for label, site in self.sites.items()},
            coordinator=self.coordinator_identity.public,
            authority=self.authority,
            initial_model=self.model,
            spec=self.spec,
            reference_persons=100,
            valid_seconds=valid_seconds,
        )
        self.spy = Spy(self.exchange)
        self.max_attempts = max_attempts
        self.folder_of_coordinator = CoordinatorFolder(
            path=folder / "coordinator",
            settings=CoordinatorSettings(
                exchange="unused",
                authority=self.authority.public.hex(),
                poll_seconds=0.005,
                max_attempts=max_attempts,
            ),
            identity=self.coordinator_identity,
            authority=self.authority.public,
            exchange=self.spy,
        )
        self.job = load_job(self.exchange, JOB, self.authority.public)

    def runner(self) -> JobRunner:
        return JobRunner(self.folder_of_coordinator, JOB)

    def start(self, *labels: str) -> None:
        for label in labels or tuple(self.sites):
            self.sites[label].start()

    def cut(self, label: str, leg: str, *, sequence: int = 1, after: bool = False) -> Site:
        site = self.sites[label]
        site.cut_at_put(f"rounds/{sequence:06d}/up/{leg}/", after=after)
        return site

    def make_order(self, identity: Identity | None = None, **changes: Any) -> tuple[Order, bytes]:
        """An order as the coordinator would sign it, changed."""
        fields: dict[str, Any] = {
            "manifest": self.manifest.digest(),
            "sequence": 1,
            "round": 1,
            "attempt": 1,
            "kind": int(Kind.TRAIN),
            "model": self.manifest.initial_model,
            "previous": bytes(32),
            "value_range": self.manifest.value_range,
            "dimension": self.dimension + 1,
            "deadline": int((time.time() + 3) * 1000),
        }
        order = Order(**(fields | changes))
        return order, seal(identity or self.coordinator_identity, order)

    def place(self, data: bytes, sequence: int = 1) -> None:
        self.exchange.put(layout.order(JOB, sequence), data)

    async def ends(self) -> dict[str, Any]:
        """How every started session ended: a SessionEnd, or the exception that cut it."""
        out: dict[str, Any] = {}
        for label, site in self.sites.items():
            if site.task is not None:
                try:
                    out[label] = await asyncio.wait_for(site.task, 20)
                except (PowerCut, TimeoutError) as error:
                    out[label] = error
        return out

    async def stop(self) -> None:
        for site in self.sites.values():
            if site.task is not None:
                site.task.cancel()
                await asyncio.gather(site.task, return_exceptions=True)
            site.ledger.close()


async def drive(runner: JobRunner, *, join_seconds: float = 5.0, close: bool = True) -> JobRunner:
    """The flow's loop without Prefect. Aborted when a round had no sum in any attempt."""
    runner.resume()
    if runner.end is not None:
        return runner
    await runner.wait_for_sites(join_seconds)
    await score(runner)
    why = None
    for number in range(runner.next_round, runner.job.plan.plan.rounds + 1):
        if (why := runner.stop_reason()) is not None:
            break
        result, reason = None, Aborted("too-few-sites", "no attempt is left")
        for attempt in runner.attempts(number, Kind.TRAIN):
            runner.dispatch(number, attempt, Kind.TRAIN)
            try:
                result = await runner.collect()
                break
            except Aborted as error:
                reason = error
        if result is None:
            runner.close("aborted", reason.message)
            raise reason
        runner.update(result)
        runner.record(RoundRecord(number=number, attempts=attempt), result)
        runner.checkpoint()
        await score(runner)
    if close:
        runner.close("completed", why or ALL_ROUNDS)
    return runner


async def score(runner: JobRunner) -> None:
    """The evaluation after a round, if there is one to come."""
    if (number := runner.to_evaluate) is None:
        return
    for attempt in runner.attempts(number, Kind.EVALUATE):
        runner.dispatch(number, attempt, Kind.EVALUATE)
        scored = await runner.collect()
        runner.score(scored)
        break
    runner.records[-1].finished = True
    runner.checkpoint()
