"""A site that vanishes, in every leg; sites that return; rounds that end without a result."""

import asyncio
import time

import pytest
from job_room import JOB, PowerCut, Room, drive, make_plan

from fedflow.errors import Aborted
from fedflow.exchange import layout
from fedflow.wire.messages import Kind

FAST = {"deadlines__round_seconds": 1.0, "deadlines__leg_seconds": 0.6}


@pytest.fixture
async def fast(tmp_path):
    made = Room(tmp_path, make_plan(plan__rounds=1, **FAST))
    yield made
    await made.stop()


@pytest.mark.parametrize(
    ("leg", "survives", "recovered", "charged"),
    [
        ("advert", False, False, False),
        ("shares", False, False, False),
        ("masked", False, True, True),
        ("signed", True, False, True),
        ("unmask", True, False, True),
    ],
)
async def test_one_site_vanishing_in_any_leg_costs_the_round_nothing(
    fast, leg, survives, recovered, charged
):
    fast.cut("beta", leg)
    fast.start()
    runner = await drive(fast.runner())
    record = runner.records[0]
    others = ["alpha", "delta", "gamma"]
    assert record.sites == (sorted([*others, "beta"]) if survives else others)
    assert record.dropped == ([] if survives else ["beta"])
    assert record.recovered == (["beta"] if recovered else [])
    assert not record.aborted
    assert record.score is not None  # the evaluation ran without it too
    ends = await fast.ends()
    assert isinstance(ends["beta"], PowerCut)
    assert {ends[label].outcome for label in others} == {"completed"}
    # What was reserved stays spent; what never got as far as the ledger costs nothing.
    assert len(fast.sites["beta"].charges()) == int(charged)
    assert all(len(fast.sites[label].charges()) == 2 for label in others)


@pytest.mark.parametrize(
    ("leg", "code"),
    [
        ("advert", "cohort-size"),
        ("shares", "too-few-shares"),
        ("masked", "too-few-vectors"),
        ("signed", "too-few-signatures"),
        ("unmask", "too-few-answers"),
    ],
)
async def test_too_many_sites_vanishing_aborts_the_round_by_name(fast, leg, code):
    for label in ("beta", "delta"):
        fast.cut(label, leg)
    fast.start()
    runner = fast.runner()
    await runner.wait_for_sites(5)
    current = runner.dispatch(1, 1, Kind.TRAIN)
    with pytest.raises(Aborted) as caught:
        await runner.collect()
    assert caught.value.code == code
    assert "3" in caught.value.message
    assert all(future.done() for future in current.answers.values())  # nobody waits for ever
    assert fast.exchange.get(layout.transcript(JOB, 1)) is None
    runner.close("aborted", "too few sites")
    began = time.monotonic()
    ends = await fast.ends()
    assert {ends[label].outcome for label in ("alpha", "gamma")} == {"completed"}
    assert time.monotonic() - began < 3  # they do not sit out the order's deadline


async def test_after_an_aborted_attempt_the_living_sites_answer_the_next_one(tmp_path):
    """They must notice the new order instead of waiting for the old one's deadline."""
    plan = make_plan(
        plan__rounds=1,
        cohort__minimum=4,
        deadlines__leg_seconds=2.0,
        deadlines__round_seconds=30.0,
    )
    room = Room(tmp_path, plan)
    hit = []

    def once(key, payload):
        if "/up/shares/" in key and not hit:
            hit.append(key)
            raise PowerCut(key)

    room.sites["beta"].exchange.before_put = once
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    runner.dispatch(1, 1, Kind.TRAIN)
    with pytest.raises(Aborted):
        await runner.collect()
    room.sites["beta"].restart()
    result = None
    for attempt in range(2, 4):
        runner.dispatch(1, attempt, Kind.TRAIN)
        try:
            result = await runner.collect()
            break
        except Aborted:
            continue
    assert result is not None
    assert len(result.outcome.survivors) == 4
    assert [len(s.charges()) for s in room.sites.values()] == [1, 1, 1, 1]
    await room.stop()


async def test_a_site_that_returns_takes_part_again(tmp_path):
    room = Room(tmp_path, make_plan(plan__rounds=3, **FAST))
    site = room.cut("beta", "masked")
    room.start()
    runner = room.runner()
    driving = asyncio.create_task(drive(runner))
    with pytest.raises(PowerCut):
        await site.task
    while not runner.records:
        await asyncio.sleep(0.01)
    site.restart()
    await driving
    assert runner.records[0].dropped == ["beta"]
    assert "beta" in runner.records[-1].sites
    assert site.task.result().outcome == "completed" if site.task.done() else True
    ends = await room.ends()
    assert ends["beta"].outcome == "completed"
    contexts = [e.context for e in site.charges()]
    assert len(contexts) == len(set(contexts))
    await room.stop()


async def test_a_site_that_comes_late_joins_the_running_job(tmp_path):
    room = Room(tmp_path, make_plan(plan__rounds=3, **FAST))
    room.start("alpha", "beta", "delta")
    runner = room.runner()
    driving = asyncio.create_task(drive(runner, join_seconds=0.3))
    while not runner.records:
        await asyncio.sleep(0.01)
    room.sites["gamma"].start()
    await driving
    assert runner.records[0].absent == ["gamma"]
    assert "gamma" in runner.records[-1].sites
    await room.stop()


async def test_too_few_sites_at_the_start_abort_by_name(fast):
    fast.start("alpha", "beta")
    with pytest.raises(Aborted, match="2 of 4 sites are present, the plan needs 3"):
        await drive(fast.runner(), join_seconds=0.3)


async def test_slow_training_past_the_deadline_is_not_charged(tmp_path):
    room = Room(
        tmp_path,
        make_plan(plan__rounds=1, deadlines__round_seconds=0.5, deadlines__leg_seconds=0.3),
    )
    room.sites["beta"].trainer.seconds = 1.5
    room.start()
    runner = await drive(room.runner())
    assert runner.records[0].dropped == ["beta"]
    await room.ends()
    assert room.sites["beta"].charges() == []
    await room.stop()


async def test_an_exchange_that_is_down_for_a_while_only_delays(fast):
    outage = {"until": 0.0}

    def down(key, payload):
        if "/up/shares/" in key and not outage["until"]:
            outage["until"] = time.monotonic() + 0.3
        if time.monotonic() < outage["until"]:
            raise OSError("no route to the exchange")

    fast.sites["beta"].exchange.before_put = down
    fast.start()
    runner = await drive(fast.runner())
    assert "beta" in runner.records[0].sites


async def test_cancelling_a_session_ends_it_and_its_training(fast):
    fast.sites["beta"].trainer.seconds = 30
    task = fast.sites["beta"].start()
    await asyncio.sleep(0.1)
    task.cancel()
    end = await asyncio.wait_for(task, 2)
    assert (end.outcome, end.code) == ("cancelled", "cancelled")
