"""A coordinator in a process of its own, on a real server: killed, cancelled, paused, resumed.

The sites are real sessions in this process, with fake training; they come without Prefect.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys

import pytest
from job_room import JOB, FakeTrainer, Room, Site, make_plan
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.states import Cancelling, Paused

from fedflow.coordinator.runner import JobRunner
from fedflow.coordinator.settings import init_coordinator, open_coordinator
from fedflow.exchange import layout, open_exchange
from fedflow.orchestration import control
from fedflow.orchestration.scrub import scrubbed_client

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.slow]
ROUNDS = 6


class GatedTrainer(FakeTrainer):
    """Trains when its gate is open."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.index, site.room.dimension)
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, task, **kwargs):
        if task != "check":
            await self.gate.wait()
        return await super().run(task, **kwargs)


class Federation:
    """A room over a folder, whose coordinator is a process."""

    def __init__(self, folder, server, seconds):
        plan = make_plan(
            plan__rounds=ROUNDS,
            deadlines__round_seconds=200.0,
            deadlines__leg_seconds=100.0,
        )
        self.exchange = open_exchange(str(folder / "exchange"))
        self.room = Room(folder / "room", plan, exchange=self.exchange, trainer=GatedTrainer)
        for site in self.room.sites.values():
            site.trainer.seconds = seconds
        self.path, self.server = folder / "coordinator", server
        init_coordinator(
            self.path, exchange=str(folder / "exchange"), authority=self.room.authority.public
        )
        (self.path / "identity.pem").unlink()
        self.room.coordinator_identity.save(self.path / "identity.pem")
        self.log = folder / "log"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "flows.training", JOB, "--no-sessions"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--coordinator", str(self.path)],
                env=os.environ | self.server.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    async def ended(self, seconds=90):
        async with asyncio.timeout(seconds):
            while self.process.poll() is None:
                await asyncio.sleep(0.05)
        return self.process.returncode

    async def until(self, condition, seconds=60):
        async with asyncio.timeout(seconds):
            while not condition():
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.02)

    def orders(self):
        return layout.sequences(self.exchange.list(layout.rounds(JOB)))

    def rounds_done(self):
        return [record.number for record in self.runner().records if record.finished]

    def runner(self) -> JobRunner:
        return JobRunner(open_coordinator(self.path), JOB)

    async def flow_run(self):
        name = FlowRunFilter(name=FlowRunFilterName(any_=[f"federated training · {JOB}"]))
        async with scrubbed_client() as client:
            runs = await client.read_flow_runs(flow_run_filter=name)
        return max(runs, key=lambda run: run.created)

    async def set_state(self, run, state):
        async with scrubbed_client() as client:
            return await client.set_flow_run_state(run.id, state)

    async def close(self):
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        await self.room.stop()


@pytest.fixture
async def federation(tmp_path, connected):
    made = Federation(tmp_path, connected, 0.3)
    made.room.start()
    yield made
    await made.close()


async def test_killed_at_random_moments_it_ends_right(federation):
    rng = random.Random(6)
    for _ in range(2):
        federation.start()
        before = len(federation.orders())
        await federation.until(lambda n=before: len(federation.orders()) > n)
        await asyncio.sleep(rng.uniform(0, 0.8))  # anywhere in the round that follows
        os.killpg(federation.process.pid, signal.SIGKILL)
        await federation.ended()
    federation.start()
    assert await federation.ended() == 0, federation.log.read_text()
    ends = await federation.room.ends()
    assert {(end.outcome, end.code) for end in ends.values()} == {("completed", "completed")}
    runner = federation.runner()
    assert [record.number for record in runner.records] == list(range(1, ROUNDS + 1))
    assert runner.end.model == runner.model_digest
    for site in federation.room.sites.values():
        assert len(site.charges()) <= len(federation.orders())


async def test_cancel_ends_the_sites_for_good(federation):
    for site in federation.room.sites.values():
        site.trainer.gate.clear()
    federation.start()
    await federation.until(federation.orders)
    await federation.set_state(await federation.flow_run(), Cancelling())
    assert await federation.ended() == 1
    ends = await federation.room.ends()
    assert {(end.outcome, end.code) for end in ends.values()} == {("completed", "cancelled")}
    assert federation.runner().end.outcome == "cancelled"
    run = await federation.flow_run()
    assert (run.state.type.value, run.state.name) == ("CANCELLED", "Cancelled")
    assert not any(site.charges() for site in federation.room.sites.values())


async def test_a_pause_waits_at_the_end_of_the_round(federation):
    for site in federation.room.sites.values():
        site.trainer.gate.clear()  # the first round stays open until all is set
    first = federation.start()
    await federation.until(federation.orders)
    run = await federation.flow_run()
    federation.start()  # one is enough
    assert await federation.ended() == 1
    assert f"coordinated already, by process {first.pid} on" in federation.log.read_text()
    federation.process = first
    await federation.set_state(run, Paused(timeout_seconds=600))
    await asyncio.sleep(4 * control.POLL_SECONDS)
    for site in federation.room.sites.values():
        site.trainer.gate.set()
    await federation.until(lambda: federation.rounds_done() == [1])
    await asyncio.sleep(2)  # long enough for a next order, if any came
    assert federation.rounds_done() == [1]
    assert len(federation.orders()) == 1
    assert all(not site.task.done() for site in federation.room.sites.values())
    async with scrubbed_client() as client:
        await client.resume_flow_run(run.id)
    assert await federation.ended() == 0, federation.log.read_text()
    assert federation.runner().end.outcome == "completed"


async def test_a_stop_leaves_the_job_and_a_server_that_is_away_costs_it_nothing(federation):
    federation.start()
    await federation.until(federation.orders)
    federation.process.send_signal(signal.SIGTERM)
    assert await federation.ended() == 1
    text = federation.log.read_text()
    assert "the job can be resumed. Go on with: " in text
    assert "Traceback" not in text
    assert federation.runner().end is None
    run = await federation.flow_run()
    assert (run.state.type.value, run.state.name) == ("CRASHED", "Stopped")

    before = len(federation.orders())
    federation.start()
    await federation.until(lambda: len(federation.orders()) > before)
    server, port = federation.server, federation.server.port
    server.stop()
    try:
        await federation.until(lambda: federation.runner().end is not None, 120)
    finally:
        server._wanted_port = port
        server.start()
    assert await federation.ended(200) == 0, federation.log.read_text()
    run = await federation.flow_run()
    assert run.state.is_completed()
