"""A coordinator goes on with a job from what is in the exchange: with a checkpoint or without."""

import asyncio
import shutil

import pytest
from job_room import JOB, Room, drive, make_plan

from fedflow.coordinator.adoption import Adoption
from fedflow.coordinator.attempts import MOST_INTERRUPTED
from fedflow.coordinator.runner import RoundRecord, Superseded
from fedflow.errors import Aborted, Refusal, Violation
from fedflow.exchange import layout
from fedflow.wire.messages import Kind


@pytest.fixture
async def room(tmp_path):
    plan = make_plan(deadlines__round_seconds=2.0, deadlines__leg_seconds=1.5)
    made = Room(tmp_path, plan)
    yield made
    await made.stop()


def forget(room):
    shutil.rmtree(room.folder_of_coordinator.path)


async def one_round(runner, number):
    runner.dispatch(number, next(runner.attempts(number, Kind.TRAIN)), Kind.TRAIN)
    result = await runner.collect()
    runner.update(result)
    runner.record(RoundRecord(number=number), result)


async def test_a_fresh_disk_rebuilds_the_whole_job(room):
    room.start()
    done = await drive(room.runner(), close=False)
    forget(room)
    before = dict(room.exchange.objects)
    runner = room.runner()
    taken = runner.resume()
    assert [order.sequence for order in taken] == [1, 2, 3]
    assert runner.state == done.state
    assert [(r.number, r.sites, r.rebuilt) for r in runner.records] == [
        (r.number, r.sites, True) for r in done.records
    ]
    assert runner.records[-1].score == done.records[-1].score
    assert runner.to_evaluate is None
    assert room.exchange.objects == before
    again = room.runner()  # its checkpoint says the same, and there is nothing more to take
    assert again.resume() == []
    assert (again.state, again.records) == (runner.state, runner.records)
    again.close("completed", "")
    await room.ends()


async def test_refusals_and_absences_are_read_from_what_sites_signed(room):
    room.sites["delta"].trainer.fail["train"] = Refusal("bad-data", "no rows")
    room.start("alpha", "beta", "delta")
    runner = room.runner()
    await runner.wait_for_sites(5, enough=3)
    runner.dispatch(1, 1, Kind.TRAIN)
    with pytest.raises(Aborted):
        await runner.collect()
    room.start("gamma")
    await runner.wait_for_sites(5, enough=4)
    await one_round(runner, 1)
    record = runner.records[0]
    forget(room)
    rebuilt = room.runner()
    rebuilt.resume()
    assert list(rebuilt.records[0].refused) == list(record.refused) == ["delta"]
    assert rebuilt.records[0].sites == record.sites
    assert (rebuilt.records[0].attempts, runner._sequence) == (2, 2)
    rebuilt.close("completed", "")
    await room.ends()


async def test_a_restart_counts_attempts_on_but_does_not_use_them_up(room):
    runner = room.runner()
    for start in range(3):  # three coordinators die in their first order; two attempts are allowed
        runner = room.runner()
        runner.resume()
        attempt = next(runner.attempts(1, Kind.TRAIN))
        assert attempt == start + 1
        runner.dispatch(1, attempt, Kind.TRAIN)
        await runner.give_up()
    runner = room.runner()
    runner.resume()
    numbers = []
    for attempt in runner.attempts(1, Kind.TRAIN):  # nobody is there: these two are aborted
        numbers.append(attempt)
        runner.dispatch(1, attempt, Kind.TRAIN)
        with pytest.raises(Aborted):
            await runner.collect()
    assert numbers == [4, 5]
    runner = room.runner()
    runner.resume()
    assert list(runner.attempts(1, Kind.TRAIN)) == []


async def test_a_coordinator_that_always_dies_comes_to_an_end(room):
    for _ in range(MOST_INTERRUPTED):
        runner = room.runner()
        runner.resume()
        runner.dispatch(1, next(runner.attempts(1, Kind.TRAIN)), Kind.TRAIN)
        await runner.give_up()
    runner = room.runner()
    runner.resume()
    assert list(runner.attempts(1, Kind.TRAIN)) == []
    assert next(runner.attempts(2, Kind.TRAIN)) == 1


async def test_an_aborted_evaluation_is_not_tried_again(room):
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    await one_round(runner, 1)
    await one_round(runner, 2)
    runner.checkpoint()
    assert runner.to_evaluate == 2
    runner.dispatch(2, 1, Kind.EVALUATE)
    await runner.give_up()
    again = room.runner()
    again.resume()
    assert again.to_evaluate == 2
    assert next(again.attempts(2, Kind.EVALUATE, 1)) == 2
    again.records[-1].finished = True
    again.checkpoint()
    assert room.runner().to_evaluate is None
    again.close("completed", "")
    await room.ends()


@pytest.mark.parametrize("what", ["transcript", "sum/0"])
async def test_what_later_orders_build_on_must_be_there(room, what):
    room.start()
    await drive(room.runner())
    forget(room)
    del room.exchange.objects[f"{layout.rounds(JOB)}/000001/{what}"]
    with pytest.raises(Refusal, match=r"order [13]") as caught:
        room.runner().resume()
    assert caught.value.code == "cannot-rebuild"


async def test_a_sum_that_was_tampered_with_is_not_taken(room):
    """The newest order's: nothing builds on it yet, so it is ordered again."""
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    await one_round(runner, 1)
    forget(room)
    key = layout.total(JOB, 1, 0)
    data = bytearray(room.exchange.objects[key])
    data[7] ^= 1
    room.exchange.objects[key] = bytes(data)
    again = room.runner()
    assert again.resume() == []
    assert (again.next_round, next(again.attempts(1, Kind.TRAIN))) == (1, 2)
    again.close("completed", "")
    await room.ends()


async def test_the_newest_order_says_which_branch_counts(room):
    """Two sums build on the first state: an old one, and the one the next order builds on."""
    room.start()
    runner, other = room.runner(), room.runner()
    await runner.wait_for_sites(5)
    await one_round(runner, 1)
    other._sequence = 1  # it never saw that sum
    other.look_for_sites()
    await one_round(other, 1)
    other.dispatch(2, 1, Kind.TRAIN)
    await other.give_up()
    forget(room)
    again = room.runner()
    assert [order.sequence for order in again.resume()] == [2]
    assert again.state == other.state != runner.state
    again.close("completed", "")
    await room.ends()


async def test_who_comes_second_stops_at_once(room):
    room.start()
    first, second = room.runner(), room.runner()
    await first.wait_for_sites(5)
    second.look_for_sites()
    first.dispatch(1, 1, Kind.TRAIN)
    puts = len(room.spy.puts)
    await asyncio.sleep(0.002)  # within one millisecond both would have signed the same order
    with pytest.raises(Superseded, match="another coordinator"):
        second.dispatch(1, 1, Kind.TRAIN)
    assert second._running is None
    await asyncio.sleep(0.05)
    result = await first.collect()
    assert all("000001/" in key for key, _ in room.spy.puts[puts:])
    first.update(result)
    first.close("completed", "")
    await room.ends()


async def test_bytes_of_nobody_in_an_orders_place_are_no_coordinator(room):
    runner = room.runner()
    room.exchange.put(layout.order(JOB, 1), b"junk")
    with pytest.raises(Violation) as caught:
        runner.dispatch(1, 1, Kind.TRAIN)
    assert not isinstance(caught.value, Superseded)


async def test_an_order_that_may_have_arrived_is_put_again_as_it_was(room):
    runner = room.runner()
    down = [True]

    def after(key, payload):
        if down and key.endswith("/order"):
            down.pop()
            raise OSError("the answer was lost")

    room.spy.after_put = after
    with pytest.raises(OSError, match="lost"):
        runner.dispatch(1, 1, Kind.TRAIN)
    runner.dispatch(1, 1, Kind.TRAIN)
    await runner.give_up()
    names = room.exchange.list(layout.rounds(JOB))
    assert names == ["000001"]


async def test_closing_twice_keeps_the_first_word(room):
    runner = room.runner()
    runner.close("cancelled", "on request")
    runner.close("completed", "all done")
    assert (runner.end.outcome, runner.end.reason) == ("cancelled", "on request")


async def test_adoption_reads_and_writes_nothing(room):
    room.start()
    done = await drive(room.runner())
    before = dict(room.exchange.objects)
    fresh = room.runner()
    forget(room)
    fresh.coordinator.state_path(JOB).parent.mkdir(parents=True)
    adoption = Adoption(room.exchange, room.job, fresh._rules)
    again = room.runner()
    steps = list(adoption.follow(again.state, again._vector))
    assert steps[-1].state == done.state
    assert room.exchange.objects == before
