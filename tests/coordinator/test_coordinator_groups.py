"""Groups in a whole job: a cycle's rounds ask other sites each, and nobody can be asked instead."""

import asyncio
import itertools

import numpy as np
import pytest
from job_room import JOB, Asking, Room, drive, make_plan

from fedflow.coordinator import runner as runner_module
from fedflow.coordinator import secure_round
from fedflow.errors import Aborted, Refusal, Violation
from fedflow.exchange import layout
from fedflow.history import check_due
from fedflow.learning.groups import deal
from fedflow.learning.model_file import decode_model
from fedflow.learning.server_state import GROUP_MEANS, ROUND
from fedflow.site import session
from fedflow.wire.messages import Decline, Kind
from fedflow.wire.sealed import unseal

NINE = tuple("abcdefghi")
PLAN = {
    "plan__rounds": 6,
    "participation__groups": 3,
    "evaluation__every": 3,
    "strategy__server_learning_rate": 1.0,
}


def groups_of(room, cycle):
    labels = sorted(room.sites)
    return [
        [labels[i] for i in group] for group in deal(3, range(9), room.manifest.digest(), cycle)
    ]


async def test_a_cycle_asks_each_site_once_and_steps_once(tmp_path):
    room = Room(tmp_path, make_plan(**PLAN), labels=NINE)
    room.start()
    runner = room.runner()
    files = []
    update = runner.update

    def noted(result):
        files.append(decode_model(room.exchange.get(layout.blob(JOB, update(result))), room.spec))
        return files[-1]

    runner.update = noted
    await drive(runner)
    assert {end.outcome for end in (await room.ends()).values()} == {"completed"}
    asked = [record.sites for record in runner.records]
    assert asked == groups_of(room, 0) + groups_of(room, 1)
    for label, site in room.sites.items():
        assert [e.purpose for e in site.charges()].count("train") == 2, label
        assert [e.purpose for e in site.charges()].count("evaluate") == 2, label
    stays = [np.array_equal(a["w"], b["w"]) for a, b in itertools.pairwise(files)]
    assert stays == [True, False, True, True, False]
    assert [int(file[ROUND][0]) for file in files] == [1, 2, 3, 4, 5, 6]
    assert [bool(file[GROUP_MEANS].any()) for file in files] == [True, True, False] * 2
    # The step of the first cycle is the median of what the sites gave, within rounding.
    given = {label: site.trainer.given[0] for label, site in room.sites.items()}
    means = [np.mean([given[label] for label in group], axis=0) for group in groups_of(room, 0)]
    assert np.allclose(files[2]["w"].ravel(), np.median(means, axis=0), atol=1e-4)
    await room.stop()


async def test_a_group_without_enough_sites_has_no_sum_and_nobody_comes_in_for_it(tmp_path):
    room = Room(tmp_path, make_plan(**PLAN), labels=NINE, max_attempts=2)
    gone = groups_of(room, 0)[1][0]
    room.start(*(label for label in NINE if label != gone))
    runner = room.runner()
    await runner.wait_for_sites(0.5, enough=9)
    with pytest.raises(Aborted):
        await drive(runner, join_seconds=0.1)
    assert [record.sites for record in runner.records] == [groups_of(room, 0)[0]]
    for number in (2, 3):
        order = runner.current.order
        assert [sorted(room.sites)[i] for i in order.invited] == groups_of(room, 0)[1], number
    assert runner.end.outcome == "aborted"
    await room.stop()


async def test_a_site_refuses_an_order_that_asks_another_group(tmp_path):
    """Whatever the server signs: the site that was to be alone among accomplices says no."""
    room = Room(tmp_path, make_plan(**PLAN), labels=NINE)
    mine = deal(3, range(9), room.manifest.digest(), 0)[0]
    chosen = mine[0]
    accomplices = tuple(i for i in range(9) if i not in mine)[:2]
    _, data = room.make_order(invited=tuple(sorted((chosen, *accomplices))))
    label = sorted(room.sites)[chosen]
    site = room.sites[label]
    site.start()
    room.place(data)
    key = layout.up(JOB, 1, "decline", chosen)
    async with asyncio.timeout(10):
        while (answer := room.exchange.get(key)) is None:
            await asyncio.sleep(0.01)
    decline = unseal(Decline, answer, site.identity.public)
    assert decline.code == "wrong-group"
    assert "nobody's to choose" in decline.reason
    assert site.charges() == []
    await room.stop()


class AskingAll(Asking):
    """An order as the server and its accomplice read it."""

    def asked(self, sites):
        return set(sites)


async def test_a_group_refuses_a_cohort_with_an_accomplice_who_was_not_asked(tmp_path, monkeypatch):
    """The order is right, and the server lets one more into the cohort beside the group."""
    room = Room(tmp_path, make_plan(**PLAN), labels=NINE, max_attempts=1)
    group = groups_of(room, 0)[0]
    accomplice = next(label for label in NINE if label not in group)
    guest = room.sites[accomplice].index
    admit = session.admit_order

    def admitted(job, *rest):
        order = admit(job, *rest)
        return AskingAll(order) if job.index == guest else order

    monkeypatch.setattr(session, "admit_order", admitted)
    server, inbox = secure_round.SecAggServer, secure_round.Inbox
    one_round = secure_round.SecureRound
    monkeypatch.setattr(
        secure_round,
        "Inbox",
        lambda exchange, job, order, *rest: inbox(exchange, job, AskingAll(order), *rest),
    )
    monkeypatch.setattr(
        secure_round,
        "SecAggServer",
        lambda *, roster, **rest: server(roster=room.job.roster, **rest),
    )
    monkeypatch.setattr(
        runner_module,
        "SecureRound",
        lambda coordinator, job, order, expected, *rest: one_round(
            coordinator, job, order, expected | {guest}, *rest
        ),
    )
    room.start(*group, accomplice)
    runner = room.runner()
    await runner.wait_for_sites(5, enough=4)
    runner.dispatch(1, 1, Kind.TRAIN)
    with pytest.raises(Aborted, match="refused: not-in-roster"):
        await runner.collect()
    for label in group:
        assert room.sites[label].charges() == []
    await room.stop()


async def test_a_job_of_too_few_sites_for_its_groups_is_never_signed(tmp_path):
    with pytest.raises(Refusal, match="are 2 in the smallest"):
        Room(tmp_path, make_plan(**PLAN), labels=NINE[:8])


async def test_a_round_that_is_not_due_is_not_trained(tmp_path):
    """The counter in the model says whose turn it is: a group cannot be heard twice.

    Else a site could be asked in a later cycle's round too, from the model of this one.
    """
    room = Room(tmp_path, make_plan(**PLAN), labels=NINE)
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5, enough=9)
    runner.dispatch(2, 1, Kind.TRAIN)
    with pytest.raises(Aborted, match="refused: wrong-round"):
        await runner.collect()
    assert [site.charges() for site in room.sites.values()] == [[]] * 9
    await room.stop()


async def test_no_other_coordinates_can_be_asked_for(tmp_path):
    """They follow from the plan and the model's counter, whatever the order says."""
    room = Room(tmp_path, make_plan(secure_aggregation__density=0.5))
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5, enough=len(room.sites))
    runner.dispatch(2, 1, Kind.TRAIN)
    with pytest.raises(Aborted, match="refused: wrong-round"):
        await runner.collect()
    assert not any(site.charges() for site in room.sites.values())
    await room.stop()


def test_a_sum_of_a_round_that_is_not_due_makes_no_model(tmp_path):
    """If all sites lied together, nobody who reads the history would follow."""
    room = Room(tmp_path, make_plan(**PLAN), labels=NINE)
    order, _ = room.make_order(round=2)
    with pytest.raises(Violation, match="is not the one its model is due for"):
        check_due({ROUND: np.zeros(1, np.float32)}, order)
    check_due({ROUND: np.ones(1, np.float32)}, order)
    check_due({}, order)
