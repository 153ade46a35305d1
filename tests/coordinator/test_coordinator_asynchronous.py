"""Asynchronous rounds: the first that are ready make a sum, and late updates weigh less."""

import contextlib

import numpy as np
import pytest
from job_room import JOB, Room, drive, make_plan

from fedflow.errors import Aborted
from fedflow.exchange import layout
from fedflow.learning.model_file import decode_model, flatten
from fedflow.site.ahead import weight_of
from fedflow.wire.messages import Kind

FIVE = ("a", "b", "c", "d", "slow")
FEDBUFF = {
    "strategy__name": "fedbuff",
    "strategy__buffer": 4,
    "cohort__minimum": 3,
    "plan__rounds": 8,
    "evaluation__every": 8,
    "deadlines__round_seconds": 20.0,
    "deadlines__leg_seconds": 10.0,
}


def slow_room(tmp_path, seconds, **fields):
    room = Room(tmp_path, make_plan(**{**FEDBUFF, **fields}), labels=FIVE)
    for label, site in room.sites.items():
        site.trainer.seconds = seconds if label == "slow" else 0.02
    room.start()
    return room


async def test_a_slow_site_holds_up_nobody_and_is_in_a_sum_when_it_is_ready(tmp_path):
    room = slow_room(tmp_path, seconds=1.2)
    runner = await drive(room.runner())
    assert len(runner.records) == 8
    assert all(len(record.sites) >= 4 for record in runner.records)
    late = [record.number for record in runner.records if "slow" in record.sites]
    assert late, "its update was used"
    assert late[0] > 1, "and it was an old one by then"
    away = [record for record in runner.records if "slow" not in record.sites]
    assert away, "no round waited for the slow site"
    assert all("slow" in record.resting and not record.dropped for record in away)
    ends = await room.ends()
    assert ends["slow"].outcome == "completed"
    # One charge for each sum it was in, and for nothing that it trained and did not send.
    trained = [e for e in room.sites["slow"].charges() if e.purpose == "train"]
    assert [e.round for e in trained] == late
    await room.stop()


async def test_an_old_update_weighs_less(tmp_path):
    """The model is the weighted mean of what was sent: w = 1/sqrt(1 + rounds since it began)."""
    room = slow_room(tmp_path, seconds=0.7, plan__rounds=6, evaluation__every=6)
    runner = await drive(room.runner())
    given = {
        label: iter([v for v in site.trainer.given if v.dtype == np.float32])
        for label, site in room.sites.items()
    }
    last = dict.fromkeys(FIVE, 0)  # the round after which a site was free to begin anew
    wanted = np.zeros(room.dimension)
    weights = []
    for record in runner.records:
        total, weight = np.zeros(room.dimension), 0.0
        for label in record.sites:
            w = weight_of(record.number - (last[label] + 1))
            total += w * next(given[label])
            weight += w
            weights.append(w)
            last[label] = record.number
        wanted += total / weight
    assert min(weights) < 0.8, "something old was in a sum"
    model = decode_model(room.exchange.get(layout.blob(JOB, runner.model_digest)), room.spec)
    np.testing.assert_allclose(flatten(model), wanted, atol=1e-5)
    await room.stop()


async def test_what_is_older_than_the_plan_allows_is_given_up(tmp_path):
    room = slow_room(tmp_path, seconds=1.5, strategy__max_staleness=1)
    runner = await drive(room.runner())
    assert len(runner.records) == 8
    assert all("slow" not in record.sites for record in runner.records)
    begun = [task for task in room.sites["slow"].trainer.tasks if task == "train"]
    assert len(begun) > 1, "it began anew from a newer model"
    assert not [e for e in room.sites["slow"].charges() if e.purpose == "train"]
    await room.stop()


async def test_sites_that_train_through_an_abort_are_waited_for_again(tmp_path):
    """An order that nobody was ready for ends without a sum; the next buffer is still a whole one.

    Were those that train forgotten, the next order would expect nobody and close at once.
    """
    fields = {"plan__rounds": 1, "evaluation__every": 1, "deadlines__round_seconds": 1.0}
    room = Room(tmp_path, make_plan(**{**FEDBUFF, **fields}), labels=FIVE, max_attempts=20)
    for number, site in enumerate(room.sites.values()):
        site.trainer.seconds = 1.6 + 0.1 * number
    room.start()
    runner = room.runner()
    runner.resume()
    there = await runner.wait_for_sites(10.0)
    first = runner.dispatch(1, 1, Kind.TRAIN)
    with pytest.raises(Aborted):
        await runner.collect()
    assert runner.look_for_sites() == there == set(room.job.roster)
    assert {answer.result().code for answer in first.answers.values()} == {"busy"}
    for attempt in runner.attempts(1, Kind.TRAIN):
        with contextlib.suppress(Aborted):
            runner.dispatch(1, attempt, Kind.TRAIN)
            result = await runner.collect()
            break
    assert attempt > 1
    assert len(result.outcome.survivors) >= room.plan.strategy.buffer
    await room.stop()


@pytest.mark.parametrize(("rounds", "weight"), [(0, 1.0), (3, 0.5), (8, 1 / 3)])
def test_the_weight_of_an_update(rounds, weight):
    assert weight_of(rounds) == pytest.approx(weight)
