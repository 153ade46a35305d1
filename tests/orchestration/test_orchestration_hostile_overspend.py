"""A hostile Prefect server that wants a site to pay more than its coordinator's orders cost.

Floods of sessions, replays of finished ones, sessions cancelled and opened again and again in the
middle of rounds: against real agents, policies and ledgers. What a site pays for is a signed order
it had not answered before, and nothing Prefect says is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import anyio
import crowd
import pytest
from job_room import drive
from orchestration_room import start_run, until_final, worker_at
from prefect.states import Cancelling
from test_orchestration_hostile_spending import LABEL, running, session

from fedflow.coordinator.runner import JobRunner
from fedflow.coordinator.settings import open_coordinator
from fedflow.exchange import layout
from fedflow.orchestration import worker as worker_module
from fedflow.orchestration.registration import register_site
from fedflow.orchestration.scrub import scrubbed_client

pytestmark = pytest.mark.usefixtures("connected")

SITES = 4
PLAN = {
    "plan__rounds": 3,
    "evaluation__every": 3,
    "deadlines__round_seconds": 20.0,
    "deadlines__leg_seconds": 5.0,
}


@pytest.fixture
def opened(tmp_path):
    """The coordinator's folder and one job over four sites, three of which are enough."""
    folder, job = crowd.make_crowd(tmp_path, SITES, **PLAN)
    return open_coordinator(folder), job


def charges(agent):
    return [e for e in agent._ledger.entries() if e.kind == "reserve"]


def orders(exchange):
    return layout.sequences(exchange.list(layout.rounds(crowd.JOB)))


def assert_paid_by_order(agent, exchange):
    """No order twice, nothing that is no order, and whatever left was paid for."""
    paid = charges(agent)
    assert len({entry.context for entry in paid}) == len(paid) <= len(orders(exchange))
    hashes = {entry.release_hash for entry in paid}
    left = [exchange.get(layout.up(crowd.JOB, n, "masked", 0)) for n in orders(exchange)]
    assert all(hashlib.sha256(data).digest() in hashes for data in left if data is not None)
    return len(paid), sum(data is not None for data in left)


@contextlib.asynccontextmanager
async def coordinating(coordinator, job):
    """The job's coordinator, without Prefect; it must come to its end."""
    task = asyncio.create_task(drive(JobRunner(coordinator, job.id), join_seconds=60))
    try:
        yield task
        await asyncio.wait_for(task, 120)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask_for(job, number):
    """So many runs of the same session, as whoever has the API can create them; their ids."""
    deployment = await register_site(LABEL)
    async with scrubbed_client() as client:
        runs = [
            await client.create_flow_run_from_deployment(deployment, parameters=session(job))
            for _ in range(number)
        ]
    return [run.id for run in runs]


async def test_a_flood_of_sessions_costs_what_the_orders_cost(opened, tmp_path, monkeypatch):
    coordinator, job = opened
    async with running(tmp_path, monkeypatch, SITES) as agents:
        runs = await ask_for(job, 40)
        async with worker_at(LABEL) as worker, coordinating(coordinator, job) as coordinated:
            while not coordinated.done():
                await worker.get_and_submit_flow_runs()
                assert worker.limiter.borrowed_tokens <= worker_module.MAX_RUNS
                await asyncio.sleep(0.1)
            exchange = coordinator.exchange
            before = assert_paid_by_order(agents[0], exchange)
            assert before == (len(orders(exchange)), len(orders(exchange)))
            ended = set()
            with anyio.fail_after(120):
                while len(ended) < len(runs):  # all the others come when the job is over
                    await worker.get_and_submit_flow_runs()
                    for run in set(runs) - ended:
                        if (await until_final(run, 0)).is_final():
                            ended.add(run)
            assert [(await until_final(run)).name for run in runs] == ["Completed"] * len(runs)
            assert assert_paid_by_order(agents[0], exchange) == before


async def test_a_finished_session_that_is_replayed_costs_nothing(
    opened, tmp_path, evil, monkeypatch
):
    """The poll shows it again and again, and the exchange shows an old order as a new one."""
    coordinator, job = opened
    exchange = coordinator.exchange
    async with running(tmp_path, monkeypatch, SITES) as agents:
        asked = []
        real = agents[0]._open
        agents[0]._open = lambda *args: asked.append(args) or real(*args)
        run = await start_run(LABEL, session(job))
        kept = []

        def replay(method, path, answer):
            if path.endswith("get_scheduled_flow_runs"):
                kept.extend(answer)
                return kept[:1]
            if path.endswith("set_state"):
                return answer | {"status": "ACCEPT", "details": {"type": "accept_details"}}
            return answer

        evil.mutate = replay
        async with worker_at(LABEL, evil.api_url) as worker:
            async with coordinating(coordinator, job):
                await worker.get_and_submit_flow_runs()
            assert (await until_final(run)).is_completed()
            before = assert_paid_by_order(agents[0], exchange)
            first = len(asked)
            for _ in range(5):
                await worker.get_and_submit_flow_runs()
                await asyncio.sleep(0.2)
            again = max(orders(exchange)) + 1
            exchange.put(layout.order(crowd.JOB, again), exchange.get(layout.order(crowd.JOB, 1)))
            end = exchange.get(layout.end(crowd.JOB))
            (tmp_path / "exchange" / layout.end(crowd.JOB)).unlink()
            await worker.get_and_submit_flow_runs()
            await asyncio.sleep(2)
            assert len(asked) > first
            assert assert_paid_by_order(agents[0], exchange) == before
            exchange.put(layout.end(crowd.JOB), end)  # lets the session that waits for it go


async def test_cancelled_and_opened_again_in_every_round(opened, tmp_path, monkeypatch):
    """An order a session was cancelled in is not answered by the next one of the same site."""
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.05)
    coordinator, job = opened
    async with running(tmp_path, monkeypatch, SITES) as agents:
        for agent in agents:
            agent._trainer.run = slowly(agent._trainer.run, 0.3)
        states = []
        async with worker_at(LABEL) as worker, coordinating(coordinator, job) as coordinated:
            while not coordinated.done():
                (run,) = await ask_for(job, 1)
                await worker.get_and_submit_flow_runs()
                until = asyncio.get_running_loop().time() + 1
                while not coordinated.done() and asyncio.get_running_loop().time() < until:
                    if agents[0]._running and agents[0]._running.phase == "training":
                        break
                    await asyncio.sleep(0.01)
                async with scrubbed_client() as client:
                    await client.set_flow_run_state(run, Cancelling())
                states.append(await until_final(run))
        assert "Cancelled" in [state.name for state in states]
        paid, left = assert_paid_by_order(agents[0], coordinator.exchange)
        assert left <= paid < len(orders(coordinator.exchange))
        for agent in agents[1:]:
            assert len(charges(agent)) == len(orders(coordinator.exchange))


def slowly(run, seconds):
    async def later(task, **about):
        await asyncio.sleep(seconds)
        return await run(task, **about)

    return later
