"""What the learning figures rest on, at tiny sizes; the figures themselves are made by hand."""

from xml.etree import ElementTree

import pytest

from benchmarks.learning import plot, rounds
from benchmarks.learning.digits import Run, rounds_to
from benchmarks.learning.rounds import IID, PUBLISHED, SHARDS, Method, rounds_row
from benchmarks.utility.report import Amount


@pytest.mark.parametrize(
    ("scores", "every", "found"),
    [
        ([50.0, 90.0, 96.0, 98.0], 1, 3.5),  # half-way between rounds 3 and 4
        ([50.0, 90.0, 96.0, 98.0], 10, 35.0),
        ([50.0, 97.0], 1, 2.0),
        ([97.0], 1, 1.0),
        ([98.0], 10, 970.0 / 98.0),
        ([96.0, 90.0, 98.0], 1, 2.5),  # a curve never goes down
        ([50.0, 96.9], 1, None),
        ([], 1, None),
    ],
)
def test_rounds_to_an_accuracy(scores, every, found):
    curve = [(every * i, score) for i, score in enumerate(scores, 1)]
    reached = rounds_to(curve, 97.0)
    assert reached == (found if found is None else pytest.approx(found))


def test_what_was_not_reached_is_said():
    method = Method("fedsgd", "iid", 0, 0.5, 100, 10)
    row, reached = rounds_row(method, [(10, 90.0), (20, 96.5), (30, 96.0)], 97.0, "here")
    assert not reached
    assert row.value == 30.0
    assert "NOT reached in 30 rounds, at 96.50 %" in row.note
    assert "published 1474" in row.note
    assert row.as_json()["curve"] == [[10.0, 90.0], [20.0, 96.5], [30.0, 96.0]]


def all_rows(amount):
    return [row for rows in (rounds.iid_rows, rounds.shard_rows) for row in rows(amount)]


@pytest.fixture
def curves(monkeypatch):
    """Trainings that end at round 100 for FedSGD, which others never see, and 8 for FedAvg."""
    made = {name: [(4, 50.0), (8, 97.0)] for name in ("fedavg", "fedavg_e5")}
    made["fedsgd"] = [(50, 90.0), (100, 97.0)]

    def run(method, amount):
        return Run(None, None, None, 0, curve=made[method.name])

    monkeypatch.setattr(rounds.Method, "run", run)
    return made


def test_gains_are_ratios_to_fedsgd_on_the_same_partition(curves):
    found = {row.name: row for row in all_rows(Amount())}
    assert {f"{m.name}_rounds_{m.how}" for m in (*IID, *SHARDS)} < set(found)
    gain = found["fedavg_round_gain_iid"]
    assert (gain.value, gain.bar, gain.met) == (12.5, ">= 10", True)
    assert found["fedavg_round_gain_shards"].bar is None
    assert all(row.met is None for row in all_rows(Amount(quick=True)))


def test_a_gain_over_what_never_got_there_is_a_lower_bound(curves):
    curves["fedsgd"] = [(50, 90.0), (100, 96.0)]
    found = {row.name: row for row in all_rows(Amount())}
    assert found["fedavg_round_gain_iid"].value == 12.5
    assert "at least" in found["fedavg_round_gain_iid"].note
    curves["fedavg"] = [(8, 60.0)]
    assert "fedavg_round_gain_iid" not in {row.name for row in all_rows(Amount())}


def test_published_figures_are_for_methods_that_are_run():
    assert set(PUBLISHED) <= {(method.name, method.how) for method in (*IID, *SHARDS)}


def test_the_picture_has_every_curve_there_is(curves):
    rows = {row.name: row.curve for row in all_rows(Amount())}
    tree = ElementTree.fromstring(plot.drawn(rows))
    text = " ".join(node.text or "" for node in tree.iter())
    for panel in plot.PANELS:
        if set(panel.lines) & set(rows):
            assert panel.title in text
    assert ElementTree.fromstring(plot.drawn({})) is not None
