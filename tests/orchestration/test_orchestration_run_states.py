"""What a control makes of the states a real server gives a flow run."""

from __future__ import annotations

import asyncio

import pytest
from prefect import flow
from prefect.settings import temporary_settings
from prefect.states import Cancelled, Cancelling, Crashed, Paused, Running, Suspended

from fedflow.orchestration import control as controls
from fedflow.orchestration.control import Control, controlled
from fedflow.orchestration.earlier_runs import MESSAGE, close_earlier
from fedflow.orchestration.scrub import scrubbed_client

pytestmark = pytest.mark.usefixtures("connected")


@flow(persist_result=False)
async def nothing() -> None:
    """A flow whose runs are only looked at."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(controls, "POLL_SECONDS", 0.05)


@pytest.fixture
async def run(connected):
    async with scrubbed_client() as client:
        flow_id = await client.create_flow(nothing)
        deployment = await client.create_deployment(flow_id, name="trial")  # only these suspend
        made = await client.create_flow_run_from_deployment(deployment)
        await client.set_flow_run_state(made.id, Running(), force=True)
    return made.id


async def set_state(run, state):
    async with scrubbed_client() as client:
        return await client.set_flow_run_state(run, state)


async def forever():
    await asyncio.sleep(3600)


@pytest.mark.parametrize("state", [Cancelling(), Cancelled()])
async def test_a_cancelled_run_cancels_the_work(run, state):
    async with controlled(run) as control:
        work = asyncio.create_task(control.guard(forever()))
        await set_state(run, state)
        with pytest.raises(controls.Cancelled):
            await asyncio.wait_for(work, 30)


async def test_a_stop_is_no_cancellation_unless_the_run_is_cancelled(run):
    control = Control(run)  # it does not watch: a worker's signal may come before the next look
    control.stop()
    with pytest.raises(controls.Stopped):
        await control.guard(forever())
    await set_state(run, Cancelling())
    with pytest.raises(controls.Cancelled):
        await control.guard(forever())


async def test_a_paused_run_waits_and_a_resumed_one_goes_on(run):
    async with controlled(run) as control:
        assert not await control.boundary()
        await set_state(run, Paused(timeout_seconds=600))
        while not control._paused:
            await asyncio.sleep(0.02)
        assert await control.guard(asyncio.sleep(0, "the round is finished")) is not None
        waiting = asyncio.create_task(control.boundary())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        async with scrubbed_client() as client:
            await client.resume_flow_run(run)
        assert await asyncio.wait_for(waiting, 30)


async def test_a_pause_can_be_cancelled(run):
    async with controlled(run) as control:
        await set_state(run, Paused(timeout_seconds=600))
        while not control._paused:
            await asyncio.sleep(0.02)
        work = asyncio.create_task(control.guard(control.boundary()))
        await set_state(run, Cancelling())
        with pytest.raises(controls.Cancelled):
            await asyncio.wait_for(work, 30)


async def test_a_suspended_run_ends_the_process_and_keeps_its_state(run):
    async with controlled(run) as control:
        await set_state(run, Suspended(timeout_seconds=600))
        while not control._paused:
            await asyncio.sleep(0.02)
        with pytest.raises(controls.Suspended) as caught:
            await control.guard(control.boundary())
    assert caught.value.state.name == "Suspended"


async def test_other_final_states_are_somebody_elses_opinion(run):
    """A server or an automation that calls a live coordinator crashed does not end the job."""
    async with controlled(run) as control:
        await set_state(run, Crashed(message="no heartbeat"))
        while control._state is None or not control._state.is_crashed():
            await asyncio.sleep(0.02)
        assert not await control.boundary()
        assert await control.guard(asyncio.sleep(0, "done")) == "done"


async def test_work_that_fails_fails(run):
    async def fails():
        raise ValueError("by itself")

    with pytest.raises(ValueError, match="by itself"):
        await Control(run).guard(fails())


async def test_a_server_that_is_away_asks_for_nothing(run):
    with temporary_settings({"api.url": "http://127.0.0.1:9/api"}):
        async with controlled(run) as control:
            assert await control.guard(asyncio.sleep(0.3, "done")) == "done"
            assert not await control.boundary()
            assert not await control.until_reachable(0.2)
    assert await Control(run).until_reachable(30)


async def test_runs_that_were_killed_are_closed_by_who_goes_on(connected):
    async with scrubbed_client() as client:
        flow_id = await client.create_flow(nothing)
        deployment = await client.create_deployment(flow_id, name="killed")

        async def start(job, state):
            made = await client.create_flow_run_from_deployment(deployment, parameters={"job": job})
            await client.set_flow_run_state(made.id, state, force=True)
            return await client.read_flow_run(made.id)

        killed = await start("mine", Running())
        others = [await start("theirs", Running()), await start("mine", Cancelled())]
        own = await start("mine", Running())
        assert await close_earlier(own, "mine") == [killed.id]
        state = (await client.read_flow_run(killed.id)).state
        assert (state.type.value, state.name, state.message) == ("FAILED", "Superseded", MESSAGE)
        for run in (own, *others):
            assert (await client.read_flow_run(run.id)).state.type == run.state.type
        assert await close_earlier(own, "mine") == []


async def test_a_server_that_is_away_closes_nothing_and_breaks_nothing(run, connected):
    async with scrubbed_client() as client:
        own = await client.read_flow_run(run)
    with temporary_settings({"api.url": "http://127.0.0.1:9/api", "client.max_retries": 0}):
        assert await close_earlier(own, "mine") == []
