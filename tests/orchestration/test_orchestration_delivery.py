"""What Prefect's client sends in the background arrives, and goes where it belongs."""

import asyncio
import uuid

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.settings import temporary_settings

from fedflow.orchestration import delivery
from fedflow.orchestration.scrub import scrubbed_client

pytestmark = pytest.mark.usefixtures("connected")


@task(persist_result=False, cache_policy=NO_CACHE)
async def step(number):
    return number


async def run_of(tasks):
    """The id of a flow run with so many tasks."""

    @flow(persist_result=False)
    async def steps():
        from prefect.runtime import flow_run

        for number in range(tasks):
            await step(number)
        return flow_run.id

    return uuid.UUID(await steps())


async def test_a_run_waits_until_its_tasks_are_shown(monkeypatch):
    run = await run_of(3)
    assert await delivery.until_recorded(run, 3, 60)
    monkeypatch.setattr(delivery, "IDLE_SECONDS", 0.5)
    began = asyncio.get_running_loop().time()
    assert not await delivery.until_recorded(run, 4, 60)
    assert asyncio.get_running_loop().time() - began < 30


async def test_a_server_that_is_away_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(delivery, "IDLE_SECONDS", 0.5)
    with temporary_settings({"api.url": "http://127.0.0.1:9/api"}):
        assert not await delivery.until_recorded(uuid.uuid4(), 1, 60)
        assert await delivery.until_recorded(uuid.uuid4(), 0, 60)


async def test_an_event_after_a_flow_is_not_told_as_the_flows():
    """Prefect's thread keeps the context of the first event it was given for all that follow."""
    delivery.drain_events()
    await run_of(1)
    delivery.drain_events()
    name = f"fedflow.test.{uuid.uuid4().hex}"
    emit_event(name, resource={"prefect.resource.id": "fedflow.test"})
    async with scrubbed_client() as client, asyncio.timeout(60):
        while True:
            body = {"filter": {"event": {"name": [name]}}}
            events = (await client.request("POST", "/events/filter", json=body)).json()["events"]
            if events:
                break
            await asyncio.sleep(0.2)
    assert [event["related"] for event in events] == [[]]
