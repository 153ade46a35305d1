"""Many sites of one federation in few processes: real folders, agents, ledgers and workers.

Every site has its folder, socket and ledger as ever, and its agent and worker are the real ones.
What is shared is only the process, and training is a stand-in that draws small whole numbers and
writes down what it gave, so that a test can add them up. Run as a program it is such a process::

    python crowd.py agents FOLDER FIRST STOP        # or: workers
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import plans

from fedflow.coordinator.job import Job, create_job, load_job
from fedflow.coordinator.settings import init_coordinator, open_coordinator
from fedflow.crypto.identity import Identity
from fedflow.learning.model_file import ModelSpec, encode_model, model_digest
from fedflow.learning.plan import Plan
from fedflow.learning.server_state import initial_state, state_spec
from fedflow.site.agent import SiteAgent
from fedflow.site.config import init_site, lock_site, open_site
from fedflow.site.policy import template
from fedflow.site.trainer import Trained
from fedflow.site.training_client import TrainingFailed
from fedflow.wire.messages import Kind

JOB = "crowd"
LIMIT = 3  # steps of the grid a site gives: far from what wraps


def label(number: int) -> str:
    return f"site-{number:03d}"


def site_folder(folder: Path, name: str) -> Path:
    return folder / "sites" / name


def make_crowd(
    folder: Path, sites: int, dimension: int = 400, epsilon: float = 8.0, **changes: Any
) -> tuple[Path, Job]:
    """Folders of ``sites`` sites and a coordinator with one signed job; (coordinator's, job)."""
    plan = plans.make_plan(**{**plans.SMALL, **plans.SUMMED, **plans.AUTO, **changes})
    exchange = str(folder / "exchange")
    authority = Identity.generate()
    coordinator = init_coordinator(
        folder / "coordinator", exchange=exchange, authority=authority.public
    )
    policy = template(
        authority=authority.public.hex(),
        coordinators=[coordinator.public.hex()],
        workload=plan.plan.workload,
        dataset="visits",
        path="visits.csv",
        epsilon=epsilon,
        delta=1e-5,
        plan=plan,
    )
    keys = {}
    for number in range(sites):
        path = site_folder(folder, label(number))
        keys[label(number)] = init_site(
            path, label=label(number), exchange=exchange, policy=policy
        ).public
        (path / "policy.toml").chmod(0o600)
    opened = open_coordinator(folder / "coordinator")
    arrays = {"w": np.zeros((dimension // 4, 4), np.float32)}
    create_job(
        opened.exchange,
        job=JOB,
        plan=plan,
        sites=keys,
        coordinator=coordinator.public,
        authority=authority,
        initial_model=encode_model(initial_state(arrays, plan)),
        spec=state_spec(ModelSpec.of(arrays), plan),
        reference_persons=100,
    )
    return folder / "coordinator", load_job(opened.exchange, JOB, authority.public)


class Standin:
    """Gives vectors on the grid at once; refuses one training when it is told to.

    The file ``given`` has one line for each: task, the model it started from, the numbers.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._seed, self._calls = path, seed, 0

    async def start(self) -> None:
        """Nothing to warm."""

    async def close(self) -> None:
        """Nothing to end."""

    def forget(self) -> None:
        """Nothing is kept."""

    async def run(self, task: str, *, plan: bytes, model: bytes = b"", **_: Any) -> Trained:
        if task == "check":
            return Trained(np.empty(0, np.float32))
        self._calls += 1
        if task == "train" and (self._path / f"fail-{self._calls}").exists():
            raise TrainingFailed("told-to", "the test said so")
        rng = np.random.default_rng([self._seed, self._calls])
        if task == "train":
            size = _dimension(model)
            vector = rng.integers(-LIMIT, LIMIT + 1, size)
        else:
            length = Plan.from_canonical(plan).vector_length(Kind.EVALUATE, 0)
            vector = rng.integers(5_000, 90_000, length)
        line = {"task": task, "model": model_digest(model).hex(), "given": vector.tolist()}
        with open(self._path / "given", "a") as file:
            file.write(json.dumps(line) + "\n")
        return Trained(vector.astype(np.int64))


def _dimension(model: bytes) -> int:
    from fedflow.learning.model_file import decode_model, spec_of
    from fedflow.learning.server_state import parameters

    return ModelSpec.of(parameters(decode_model(model, spec_of(model)))).dimension


def given(folder: Path, name: str) -> dict[tuple[str, str], np.ndarray]:
    """What a site gave last, by task and hex digest of the model it was given."""
    path = site_folder(folder, name) / "given"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return {(line["task"], line["model"]): np.array(line["given"]) for line in lines}


class CrowdAgent(SiteAgent):
    """The real agent, with the stand-in where its training process would be."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(open_site(path))
        self._trainer: Any = Standin(path, seed)
        self._services = dataclasses.replace(self._services, trainer=self._trainer)


async def agents(folder: Path, first: int, stop: int) -> None:
    """Serve sites ``first`` to ``stop`` until cancelled."""
    locks, running = [], []
    for number in range(first, stop):
        path = site_folder(folder, label(number))
        locks.append(lock_site(path))
        running.append(CrowdAgent(path, number).run())
    await asyncio.gather(*running)


async def workers(folder: Path, first: int, stop: int) -> None:
    """The sites' Prefect workers, each with the socket of its own site."""
    from fedflow.orchestration import worker as module

    socket: ContextVar[str] = ContextVar("socket")
    module.socket_path = socket.get  # one process has one environment

    async def work(number: int, name: str) -> None:
        # one after the other: as processes of their own they would not start in one moment
        await asyncio.sleep(0.05 * number)
        socket.set(str(site_folder(folder, name) / "agent.sock"))
        worker = module.FedflowWorker(work_pool_name=name, name=name)
        await worker.start(printer=lambda *_: None)

    await asyncio.gather(*(work(number - first, label(number)) for number in range(first, stop)))


def main() -> None:
    what, folder, first, stop = sys.argv[1:]
    part = {"agents": agents, "workers": workers}[what]
    asyncio.run(part(Path(folder), int(first), int(stop)))


if __name__ == "__main__":
    main()
