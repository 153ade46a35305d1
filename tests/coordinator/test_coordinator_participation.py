"""Who is asked to take part in a round, and that nobody else pays for it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_room import LABELS, Asking, Room, drive, make_plan

from fedflow.coordinator.selection import SiteHistory, cohort_size, select_sites
from fedflow.crypto.csprng import Csprng
from fedflow.errors import Violation
from fedflow.site import session

SIX = ("a", "b", "c", "d", "e", "f")


def plan_of(fraction=0.5, **fields):
    named = {f"participation__{name}": value for name, value in fields.items()}
    return make_plan(participation__fraction=fraction, **named)


def labels_of(count):
    return {i: f"{'north' if i % 3 else 'south'}-{i}" for i in range(count)}


@given(
    st.integers(3, 60),
    st.floats(0.01, 1.0),
    st.data(),
    st.sampled_from(["random", "availability", "budget"]),
    st.sampled_from([(), ("north-*",), ("south-*", "north-1*")]),
)
def test_a_selection_is_of_those_present_and_of_the_planned_size(count, share, data, how, strata):
    present = data.draw(st.sets(st.integers(0, count - 1)))
    plan = plan_of(share, selection=how, strata=strata)
    chosen = select_sites(plan, labels_of(count), present, {}, Csprng.from_os())
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= present
    assert len(chosen) == min(len(present), cohort_size(plan, count))


@pytest.mark.parametrize(
    ("fraction", "spare", "sites", "size"),
    [(0.1, 0, 100, 10), (0.1, 0, 10, 3), (0.1, 2, 10, 5), (1.0, 0, 7, 7), (0.34, 0, 100, 34)],
)
def test_the_size_of_a_cohort(fraction, spare, sites, size):
    assert cohort_size(plan_of(fraction, spare=spare), sites) == size


def test_every_site_is_as_likely_as_any_other():
    labels, csprng = labels_of(20), Csprng.from_seed(bytes(32))
    drawn = Counter()
    for _ in range(2_000):
        drawn.update(select_sites(plan_of(0.25), labels, range(20), {}, csprng))
    expected = 2_000 * 5 / 20  # standard deviation about 19
    assert all(abs(count - expected) < 110 for count in drawn.values())
    assert len(drawn) == 20


def test_those_who_paid_least_are_asked_first():
    labels = labels_of(10)
    past = {i: SiteHistory(paid=5 - (i < 3)) for i in range(10)}
    chosen = select_sites(
        plan_of(0.3, selection="budget"), labels, range(10), past, Csprng.from_os()
    )
    assert chosen == (0, 1, 2)


def test_those_who_kept_coming_are_asked_first():
    past = {i: SiteHistory(paid=6, missed=0 if i in (1, 4, 7) else 3) for i in range(10)}
    plan = plan_of(0.3, selection="availability")
    assert select_sites(plan, labels_of(10), range(10), past, Csprng.from_os()) == (1, 4, 7)


def test_strata_have_places_in_proportion():
    labels = labels_of(30)  # 10 in the south, 20 in the north
    plan = plan_of(0.3, strata=("south-*", "north-*"))
    for _ in range(20):
        chosen = select_sites(plan, labels, range(30), {}, Csprng.from_os())
        assert sum(labels[i].startswith("south") for i in chosen) == 3
    # What the south cannot fill goes to the north.
    north = [i for i, label in labels.items() if label.startswith("north")]
    assert len(select_sites(plan, labels, north, {}, Csprng.from_os())) == 9


async def test_only_those_who_were_asked_are_in_the_sum_and_pay(tmp_path):
    room = Room(tmp_path, plan_of(0.5, selection="budget"), labels=SIX)
    room.start()
    runner = await drive(room.runner())
    ends = await room.ends()
    assert {end.outcome for end in ends.values()} == {"completed"}
    first, second = runner.records
    for record in (first, second):
        assert len(record.sites) == 3
        assert sorted(record.sites + record.resting) == list(SIX)
        assert not record.dropped
        assert not record.absent
    assert set(first.sites).isdisjoint(second.sites), "those that had not paid yet came next"
    for label, site in room.sites.items():
        trained = [e for e in site.charges() if e.purpose == "train"]
        assert len(trained) == 1, label
        assert len([e for e in site.charges() if e.purpose == "evaluate"]) == 1
    await room.stop()


async def test_a_coordinator_that_died_still_knows_who_was_not_asked(tmp_path):
    """Its record of the last round is made again from what it had published."""
    room = Room(tmp_path, plan_of(0.5, selection="budget"), labels=SIX)
    room.start()
    done = await drive(room.runner(), close=False)
    room.folder_of_coordinator.state_path(room.job.id).unlink()
    again = room.runner()
    again.resume()
    assert [r.resting for r in again.records] == [r.resting for r in done.records]
    assert [r.absent for r in again.records] == [[], []]
    await room.stop()


async def test_a_site_that_comes_uninvited_is_not_in_the_sum(tmp_path, monkeypatch):
    room = Room(tmp_path, plan_of(0.5, selection="budget"), labels=SIX)
    real = session.admit_order
    monkeypatch.setattr(session, "admit_order", lambda *given: Asking(real(*given)))
    room.start()
    runner = await drive(room.runner())
    assert all(len(record.sites) == 3 for record in runner.records)
    paid = [e for site in room.sites.values() for e in site.charges() if e.purpose == "train"]
    assert len(paid) == 6, "whoever is not in the cohort pays nothing"
    await room.stop()


def test_an_order_names_each_site_once(tmp_path):
    room = Room(tmp_path, labels=LABELS)
    with pytest.raises(Violation, match="ascending"):
        room.make_order(invited=(2, 1))[0].check()
    assert room.make_order(invited=(1, 2))[0].digest() != room.make_order()[0].digest()
