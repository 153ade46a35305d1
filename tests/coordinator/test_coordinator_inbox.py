"""How the coordinator reads what sites put: few requests, side by side, nobody held up."""

import threading

import pytest
from job_room import LABELS, Room, drive, make_plan

from fedflow.exchange import layout


@pytest.fixture
async def remote(tmp_path):
    """A federation whose coordinator reaches the exchange over a network, as far as it knows."""
    plan = make_plan(plan__rounds=1, deadlines__round_seconds=60.0, deadlines__leg_seconds=60.0)
    room = Room(tmp_path, plan)
    room.spy.remote = True
    yield room
    await room.stop()


def counted(room):
    """Keys that the coordinator asked for, found or not, and folders that it listed."""
    asked, listed = [], []
    inner = room.spy.inner

    class Counting:
        def get(self, key, limit):
            asked.append(key)
            return inner.get(key, limit)

        def list(self, prefix):
            listed.append(prefix)
            return inner.list(prefix)

        put = inner.put

    room.spy.inner = Counting()
    return asked, listed


@pytest.mark.parametrize("is_remote", [True, False])
async def test_only_what_is_there_is_read_and_only_once(remote, is_remote):
    remote.spy.remote = is_remote
    runner = remote.runner()
    asked, listed = counted(remote)
    remote.start()
    await drive(runner)
    from_sites = [key for key in asked if "/up/" in key]
    assert len(from_sites) == len(set(from_sites))
    assert all(remote.exchange.get(key) is not None for key in from_sites)
    assert {layout.ups("test-job", 1, leg) for leg in ("advert", "masked", "decline")} < set(listed)
    assert sorted(runner.records[0].sites) == sorted(LABELS)


async def test_one_sites_slow_vector_holds_up_nobody_else(remote):
    runner, others_there, waited = remote.runner(), threading.Event(), []
    slow = layout.vector("test-job", 1, 0, 0)

    def on_get(key, data):
        if key == slow:
            waited.append(others_there.wait(50))
        return data

    remote.spy.on_get = on_get
    remote.start()
    seen = set()
    real = runner.event

    def event(name, **facts):
        if name == "message" and facts["leg"] == "masked":
            seen.add(facts["site"])
            if len(seen) == len(LABELS) - 1:
                others_there.set()
        real(name, **facts)

    runner.event = event
    await drive(runner)
    assert waited == [True]
    assert len(runner.records[0].sites) == len(LABELS)


@pytest.mark.parametrize("is_remote", [True, False])
async def test_names_that_no_site_has_are_not_read(remote, is_remote):
    remote.spy.remote = is_remote
    for name in ("99", "1x", "01", "²", "-1"):
        try:
            remote.exchange.objects[layout.ups("test-job", 1, "advert") + "/" + name] = b"junk"
        except ValueError:
            continue
    asked, _ = counted(remote)
    remote.start()
    runner = await drive(remote.runner())
    assert len(runner.records[0].sites) == len(LABELS)
    assert not any(key.endswith(("/99", "/1x", "/01", "/-1")) for key in asked)


async def test_a_listing_that_fails_only_delays(remote):
    failures, real = [], remote.spy.list

    def listing(prefix):
        if "/up/" in prefix and len(failures) < 5:
            failures.append(prefix)
            raise OSError("down")
        return real(prefix)

    remote.spy.list = listing
    remote.start()
    runner = await drive(remote.runner())
    assert len(failures) == 5
    assert len(runner.records[0].sites) == len(LABELS)
