"""Clocks that are wrong: a site's, or the coordinator's. A little is no matter; much is refused, by
a sentence that says to look at the clock, and nothing is charged for it.
"""

import asyncio
import contextvars
import time

import pytest
from job_room import JOB, Room, drive, make_plan

from fedflow.errors import Aborted
from fedflow.exchange import layout
from fedflow.wire.messages import Decline, Kind
from fedflow.wire.sealed import unseal

MINUTES, HOURS = 60.0, 3600.0
#: How far the clock of whoever runs in this context is ahead (seconds). Tasks inherit it.
AHEAD = contextvars.ContextVar("ahead", default=0.0)
PLAN = {"deadlines__round_seconds": 40.0, "deadlines__leg_seconds": 10.0}


@pytest.fixture(autouse=True)
def clocks(monkeypatch):
    """Every task has a clock of its own."""
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + AHEAD.get())


def start(site, ahead):
    """A session whose machine's clock is ``ahead`` of the others'."""
    token = AHEAD.set(ahead)
    try:
        site.start()
    finally:
        AHEAD.reset(token)


def declined(room, site, sequence=1):
    data = room.exchange.get(layout.up(JOB, sequence, "decline", site.index))
    return None if data is None else unseal(Decline, data, site.identity.public)


async def one_round(room, *, expect, attempts=1):
    """Dispatch one training order while ``expect`` sites are awaited; its result."""
    runner = room.runner()
    runner.resume()
    await runner.wait_for_sites(10, enough=expect)
    runner.dispatch(1, attempts, Kind.TRAIN)
    return await runner.collect()


@pytest.mark.parametrize("ahead", [20.0, -90.0])
async def test_a_small_difference_is_no_matter(tmp_path, ahead):
    room = Room(tmp_path, make_plan(**PLAN))
    for label, site in room.sites.items():
        start(site, ahead if label == "alpha" else 0.0)
    result = await one_round(room, expect=4)
    assert len(result.outcome.survivors) == 4
    await room.stop()


@pytest.mark.parametrize("ahead", [10 * MINUTES, 2 * HOURS])
async def test_a_site_ahead_refuses_orders_and_says_to_check_the_clock(tmp_path, ahead):
    """Its time for the order is over before it came; the others go on."""
    room = Room(tmp_path, make_plan(**PLAN), valid_seconds=86_400)
    for label, site in room.sites.items():
        start(site, ahead if label == "alpha" else 0.0)
    result = await one_round(room, expect=4)
    alpha = room.sites["alpha"]
    assert alpha.index not in result.outcome.survivors
    assert len(result.outcome.survivors) == 3
    decline = declined(room, alpha)
    assert decline is not None
    assert decline.code == "order-expired"
    assert "clock" in decline.reason
    assert not alpha.charges()
    await room.stop()


@pytest.mark.parametrize("behind", [10 * MINUTES, 2 * HOURS])
async def test_a_site_behind_refuses_the_job_and_says_to_check_the_clock(tmp_path, behind):
    """For its clock the job is not made yet."""
    room = Room(tmp_path, make_plan(**PLAN))
    alpha = room.sites["alpha"]
    start(alpha, -behind)
    end = await asyncio.wait_for(alpha.task, 20)
    assert (end.outcome, end.code) == ("refused", "manifest-expired")
    assert "clock" in end.reason
    assert not alpha.charges()
    await room.stop()


@pytest.mark.parametrize("behind", [10 * MINUTES])
async def test_a_site_that_falls_behind_in_an_old_job_refuses_orders(tmp_path, behind):
    """The job is older than its clock is behind; then the order's deadline seems too far away."""
    token = AHEAD.set(-3 * HOURS)
    room = Room(tmp_path, make_plan(**PLAN), valid_seconds=86_400)
    AHEAD.reset(token)
    for label, site in room.sites.items():
        start(site, -behind if label == "alpha" else 0.0)
    result = await one_round(room, expect=4)
    alpha = room.sites["alpha"]
    assert alpha.index not in result.outcome.survivors
    decline = declined(room, alpha)
    assert decline is not None
    assert "clock" in decline.reason
    assert not alpha.charges()
    await room.stop()


@pytest.mark.parametrize("ahead", [10 * MINUTES, -2 * HOURS])
async def test_a_coordinator_with_a_wrong_clock_gets_no_sum_and_learns_why(tmp_path, ahead):
    """Every site refuses its orders; the reason is in theirs, and in the round's."""
    room = Room(tmp_path, make_plan(**PLAN), max_attempts=1, valid_seconds=86_400)
    room.start()

    async def coordinate():
        await drive(room.runner())

    token = AHEAD.set(ahead)
    task = asyncio.create_task(coordinate())
    AHEAD.reset(token)
    with pytest.raises(Aborted, match=r"refused: (order-expired|policy|clock)"):
        await asyncio.wait_for(task, 60)
    for site in room.sites.values():
        assert "clock" in declined(room, site).reason
        assert not site.charges()
    await room.stop()


async def test_a_coordinator_whose_clock_is_a_little_off_completes(tmp_path):
    room = Room(tmp_path, make_plan(**PLAN))
    room.start()
    token = AHEAD.set(-15.0)
    task = asyncio.create_task(drive(room.runner()))
    AHEAD.reset(token)
    assert len((await asyncio.wait_for(task, 60)).records) == 2
    await room.ends()
    await room.stop()
