"""Sites come, leave and come back: a site that is stopped says so, and nobody waits for it."""

import asyncio
import time

import pytest
from job_room import JOB, Room, make_plan

from fedflow.coordinator.presence import Presence
from fedflow.crypto.identity import Identity
from fedflow.exchange import layout
from fedflow.wire.messages import Hello, Kind, farewell
from fedflow.wire.sealed import seal


@pytest.fixture
async def room(tmp_path):
    made = Room(tmp_path, make_plan(deadlines__leg_seconds=60.0, deadlines__round_seconds=120.0))
    yield made
    await made.stop()


def say(room, session, site=0, identity=None):
    identity = identity or room.sites["alpha"].identity
    key = layout.hello(JOB, site, session)
    room.exchange.put(key, seal(identity, Hello(room.manifest.digest(), site, session)))


def start(number):
    return bytes([number]) * 32


def presence(room):
    return Presence(room.exchange, room.job, lambda site: None)


def test_what_a_farewell_ends_is_its_own_start(room):
    seen = presence(room)
    say(room, start(1))
    assert seen.look() == {0}
    say(room, start(2))  # it started again without a farewell
    assert seen.look() == {0}
    say(room, farewell(start(1)))
    assert seen.look() == {0}
    say(room, farewell(start(2)))
    assert seen.look() == set()
    say(room, start(3))
    assert seen.look() == {0}
    assert presence(room).look() == {0}


def test_a_site_that_came_and_left_is_not_there(room):
    say(room, start(1))
    say(room, farewell(start(1)))
    assert presence(room).look() == set()


def test_nobody_else_says_farewell_for_a_site(room):
    seen = presence(room)
    say(room, start(1))
    seen.look()
    say(room, farewell(start(1)), identity=Identity.generate())
    assert seen.look() == {0}


def test_an_exchange_that_is_down_loses_no_presence(room):
    def down(key, data):
        raise OSError("down")

    say(room, start(1))
    seen = Presence(room.spy, room.job, lambda site: None)
    room.spy.on_get = down
    assert seen.look() == set()
    room.spy.on_get = lambda key, data: data
    assert seen.look() == {0}


async def test_a_site_that_is_stopped_in_a_round_costs_no_deadline(room):
    """Legs of a minute: the round would be over long after this test."""
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(20)
    room.sites["alpha"].trainer.seconds = 600.0
    began = time.monotonic()
    runner.dispatch(1, 1, Kind.TRAIN)
    collecting = asyncio.create_task(runner.collect())
    while not room.exchange.list(f"{layout.rounds(JOB)}/000001/down/delivery"):
        await asyncio.sleep(0.01)
    room.sites["alpha"].task.cancel()
    result = await asyncio.wait_for(collecting, 50)
    assert time.monotonic() - began < 60
    assert result.outcome.survivors == (1, 2, 3)
    assert result.answers[0].code == "site-stopped"
    assert runner.look_for_sites() == {1, 2, 3}
    assert not room.sites["alpha"].charges()
    room.sites["alpha"].trainer.seconds = 0.0
    room.sites["alpha"].restart()
    assert await runner.wait_for_sites(20) == {0, 1, 2, 3}
    runner.close("completed", "")
    await room.ends()
