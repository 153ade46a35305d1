"""What a coordinator tells of a job: public, bounded, and never in the way of a round."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from prefect import flow

from fedflow.coordinator.records import RoundRecord
from fedflow.orchestration import events
from fedflow.orchestration.scrub import scrubbed_client

JOB = SimpleNamespace(
    id="trial",
    plan=SimpleNamespace(plan=SimpleNamespace(name="tiny", rounds=9)),
    roster={0: b"", 1: b"", 2: b""},
)


@pytest.fixture
def told(monkeypatch):
    sent = []
    monkeypatch.setattr(events, "emit_event", lambda event, **rest: sent.append((event, rest)))
    return sent


async def test_a_round_is_told_without_reasons_of_sites(told):
    record = RoundRecord(
        number=3,
        sites=["a", "b"],
        dropped=["d"],
        refused={"c": "budget-exhausted: 0.123 of 0.125 is spent"},
        bytes={"a": 4711},
    )
    await events.announce_round(JOB, record)
    ((name, rest),) = told
    assert name == "fedflow.round.completed"
    assert rest["resource"]["prefect.resource.id"] == "fedflow.job.trial"
    assert rest["payload"]["refused"] == {"c": "budget-exhausted"}
    assert rest["payload"]["sites"] == 2
    assert "score" not in rest["payload"], "a round that was not scored has no score"
    assert "0.123" not in str(rest)
    assert "4711" not in str(rest)


async def test_a_large_cohort_stays_one_small_event(told):
    lost = [f"site-{i}" for i in range(5000)]
    await events.announce_round(JOB, RoundRecord(number=1, sites=lost, dropped=lost))
    payload = told[0][1]["payload"]
    assert payload["sites"] == 5000
    assert len(payload["dropped"]) == events.MOST_LABELS


async def test_site_and_budget_events_are_of_one_resource(told):
    await events.announce_site(JOB, "berlin", "refused", 4, "plan-refused: bits 7 under 16")
    ((name, rest),) = told
    assert name == "fedflow.site.refused"
    assert rest["resource"]["prefect.resource.id"] == "fedflow.site.berlin"
    assert rest["payload"] == {"job": "trial", "site": "berlin", "round": 4, "code": "plan-refused"}
    assert rest["related"][0]["prefect.resource.id"] == "fedflow.job.trial"


async def test_an_end_is_told_on_one_line_and_bounded(told):
    await events.announce_job(JOB, "aborted", "too few\nsites " + "x" * 5000)
    ((name, rest),) = told
    assert name == "fedflow.job.aborted"
    assert rest["payload"]["reason"].startswith("too few sites x")
    assert len(rest["payload"]["reason"]) <= 300


@pytest.mark.parametrize("error", [RuntimeError("no loop"), OSError(), ValueError("too large")])
async def test_a_sender_that_fails_stops_nothing(monkeypatch, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(events, "emit_event", broken)
    await events.announce_job(JOB, "started")
    await events.announce_round(JOB, RoundRecord(number=1))
    await events.announce_site(JOB, "berlin", "dropped", 1, "silent")


async def test_in_a_flow_the_event_is_tied_to_its_run(connected):
    @flow(name="announcing", persist_result=False)
    async def announcing():
        await events.announce_site(JOB, "tied-site", "dropped", 2, "silent")

    state = await announcing(return_state=True)
    run = f"prefect.flow-run.{state.state_details.flow_run_id}"
    (event,) = await seen("fedflow.site.dropped", "fedflow.site.tied-site")
    assert run in {r["prefect.resource.id"] for r in event["related"]}
    assert event["payload"]["code"] == "silent"


async def seen(name, resource, seconds=30.0):
    """The events of that name and resource which the server kept, as soon as there are any."""
    wanted = {"filter": {"event": {"name": [name]}, "resource": {"id": [resource]}}}
    deadline = time.monotonic() + seconds
    async with scrubbed_client() as client:
        while True:
            answer = await client._client.post("/events/filter", json=wanted)
            if found := answer.json()["events"]:
                return found
            assert time.monotonic() < deadline, "no such event reached the server"
            await asyncio.sleep(0.1)
