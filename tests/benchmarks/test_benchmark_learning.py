"""What the learning figures rest on, at tiny sizes; the figures themselves are made by hand."""

import importlib.metadata
import json
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.figures import WrongResult
from benchmarks.learning import dirichlet, masks, paced, plot, rounds, straggler, trees
from benchmarks.learning.digits import Run, rounds_to
from benchmarks.learning.rounds import (
    CNN,
    IID,
    IID_99,
    SHARDS,
    SHARDS_99,
    TWO_NN,
    Method,
    rounds_row,
)
from benchmarks.utility.report import Amount
from benchmarks.utility.workloads import rows
from fedflow.crypto.csprng import Csprng
from fedflow.learning.plan import load_plan
from fedflow.learning.workload import PersonData
from fedflow.privacy.plan_cost import plan_cost


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
    row, reached = rounds_row(
        TWO_NN, method, [(10, 90.0), (20, 96.5), (30, 96.0)], Amount(), "here"
    )
    assert not reached
    assert row.value == 30.0
    assert "NOT reached in 30 rounds, at 96.50 %" in row.note
    assert "published 1474" in row.note
    assert row.as_json()["curve"] == [[10.0, 90.0], [20.0, 96.5], [30.0, 96.0]]


def all_rows(amount):
    parts = (rounds.iid_rows, rounds.shard_rows, rounds.iid_99_rows, rounds.shard_99_rows)
    return [row for rows in parts for row in rows(amount)]


@pytest.fixture
def curves(monkeypatch):
    """Trainings that end at round 100 for FedSGD, which others never see, and 8 for FedAvg."""
    made = {name: [(4, 50.0), (8, 99.0)] for name in ("fedavg", "fedavg_e5")}
    made["fedsgd"] = [(50, 90.0), (100, 99.0)]

    def run(method, task, amount):
        return Run(None, None, None, 0, curve=made[method.name])

    monkeypatch.setattr(rounds.Method, "run", run)
    return made


def test_gains_are_ratios_to_fedsgd_on_the_same_partition(curves):
    found = {row.name: row for row in all_rows(Amount())}
    assert {f"{m.name}_rounds_{m.how}" for m in (*IID, *SHARDS)} < set(found)
    assert {f"{m.name}_rounds99_{m.how}" for m in (*IID_99, *SHARDS_99)} < set(found)
    gain = found["fedavg_round_gain_iid"]
    reached_97 = 50 + 50 * 7 / 9, 4 + 4 * 47 / 49
    assert (gain.value, gain.bar, gain.met) == (
        pytest.approx(reached_97[0] / reached_97[1]),
        ">= 10",
        True,
    )
    assert found["fedavg_round99_gain_iid"].value == 12.5
    assert all(row.bar is None for name, row in found.items() if "gain" in name and row != gain)
    assert all(row.met is None for row in all_rows(Amount(quick=True)))


def test_a_gain_over_what_never_got_there_is_a_lower_bound(curves):
    curves["fedsgd"] = [(50, 90.0), (100, 96.0)]
    found = {row.name: row for row in all_rows(Amount())}
    assert found["fedavg_round_gain_iid"].value == pytest.approx(100 / (4 + 4 * 47 / 49))
    assert "at least" in found["fedavg_round_gain_iid"].note
    curves["fedavg"] = [(8, 60.0)]
    assert "fedavg_round_gain_iid" not in {row.name for row in all_rows(Amount())}


def test_published_figures_are_for_methods_that_are_run():
    for task, methods in ((TWO_NN, (*IID, *SHARDS)), (CNN, (*IID_99, *SHARDS_99))):
        assert set(task.published) - {("fedavg_e5", "shards")} <= {(m.name, m.how) for m in methods}


def test_the_picture_has_every_curve_there_is(curves):
    rows = {row.name: row.curve for row in all_rows(Amount())}
    tree = ElementTree.fromstring(plot.drawn(rows))
    text = " ".join(node.text or "" for node in tree.iter())
    for panel in plot.PANELS:
        if set(panel.lines) & set(rows):
            assert panel.title in text
    assert ElementTree.fromstring(plot.drawn({})) is not None


def test_every_method_has_as_many_tries_and_a_best_one_among_them():
    tuned = json.loads(dirichlet.FILE.read_text())
    assert tuned.keys() == dirichlet.TRIES.keys()
    assert len({len(tries) for tries in dirichlet.TRIES.values()}) == 1
    for name, best in tuned.items():
        assert best["fields"] in dirichlet.TRIES[name]
    assert dirichlet.TUNING_SEED not in dirichlet.SEEDS


def test_the_best_method_is_the_one_that_tuning_preferred():
    assert dirichlet.best_of({"fedavg": 90.0, "scaffold": 80.0, "fedprox": 85.0}) == "fedprox"
    found = {"fedavg": (80.0, 70.0, 90.0), "fedprox": (81.0, 75.0, 88.0), "other": (99.0,) * 3}
    row = dirichlet.ahead("fedprox", found, "here", judged=True)
    assert row.runs == (1.0, 5.0, -2.0)
    assert row.met is True


@pytest.fixture
def few_images(monkeypatch):
    """Ten digits as noise around ten pictures, instead of MNIST."""
    csprng = Csprng.from_seed(bytes(32))
    y = csprng.uint64(600) % 10
    pictures = csprng.uniform(10 * 784).reshape(10, 784)
    made = rows((pictures[y.astype(int)]).astype(np.float32), y)
    monkeypatch.setattr("benchmarks.learning.digits.images", lambda most: (made, made))
    monkeypatch.setattr(dirichlet, "SITES", 5)
    monkeypatch.setattr(dirichlet, "FRACTION", 0.8)


@pytest.mark.parametrize("name", dirichlet.TRIES)
def test_every_method_is_run_as_itself(few_images, name, monkeypatch):
    plans = []
    real = dirichlet.federated
    monkeypatch.setattr(
        dirichlet, "federated", lambda plan, *a, **k: plans.append(plan) or real(plan, *a, **k)
    )
    run = dirichlet.train(name, dirichlet.TRIES[name][0], Amount(quick=True), 1, 2)
    assert [number for number, _ in run.curve] == [2]
    (plan,) = plans
    assert (plan.strategy.name == "scaffold") is (name == "scaffold")
    assert (plan.training.proximal > 0) is (name == "fedprox")
    optimizer = {"fedadam": "adam", "fedyogi": "yogi"}.get(name, "sgd")
    assert plan.strategy.server_optimizer == optimizer


def test_a_speedup_is_seconds_to_the_same_score():
    curves = {
        "synchronous": [[(10.0, 60.0), (20.0, straggler.TARGET)]],
        "asynchronous": [[(2.0, 60.0), (3.0, 61.0), (4.0, straggler.TARGET)]],
    }
    *_, row = straggler.rows_of(curves, 0.1, judged=True)
    assert (row.name, row.value, row.met) == ("async_speedup_straggler10", 5.0, True)
    curves["asynchronous"] = [[(2.0, 60.0)]]
    with pytest.raises(WrongResult, match="asynchronous"):
        list(straggler.rows_of(curves, 0.1, judged=True))


def test_both_plans_of_the_straggler_train_alike():
    one, other = straggler.plan_of(False), straggler.plan_of(True)
    assert one.model_copy(update={"strategy": other.strategy}) == other
    assert other.is_asynchronous
    assert other.strategy.buffer == straggler.SITES - 1
    assert len(straggler.real_sites()) == straggler.SITES


def test_steps_take_what_a_sites_pace_says(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(paced.time, "sleep", slept.append)
    data = tmp_path / "site.csv"
    data.write_bytes(straggler.real_sites()[0])
    (tmp_path / paced.PACE).write_text("0.25")
    workload = paced.Paced()
    assert isinstance(workload.load(data), PersonData)
    workload.loss(torch.zeros(3, 1), torch.zeros(3, 1))  # a trial of the model
    workload.loss(torch.zeros(30, 1), torch.zeros(30, 1))
    assert slept == [0.25]


def test_the_paced_workload_is_installed_where_its_folder_is_on_the_path(tmp_path, monkeypatch):
    paced.install(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found = importlib.metadata.entry_points(group=paced.ENTRY_POINTS)
    (entry,) = [e for e in found if e.name == "paced"]
    assert entry.load() is paced.workload


@pytest.mark.parametrize("name", ["gbdt", "forest"])
def test_trees_are_run_by_the_example_plans_with_other_trees_for_each_seed(name):
    one, other = (trees.plan_of(name, seed) for seed in (0, 1))
    assert one.digest() != other.digest()
    assert one.privacy == load_plan(trees.PLANS / f"{name}.toml").privacy
    assert plan_cost(one).total.train_epsilon <= 8.0
    quick = trees.plan_of(name, 0, trees.QUICK_ROUNDS)
    assert quick.method.trees * one.plan.rounds == one.method.trees * quick.plan.rounds


def test_masks_change_nothing_in_a_score_and_every_scored_plan_is_in_the_row(monkeypatch):
    plans = {plan.plan.name: plan for plan in masks.example_plans()}
    assert {"randhie", "scaffold", "gbdt", "kmeans", "local-layers", "sparse"} < set(plans)
    assert not {"histogram", "preprocessing", "tabular", "mails"} & set(plans)
    asked = []

    def score(plan, data, rounds, *, secure):
        asked.append((plan.plan.name, secure))
        return 70.0 + (0.2 if secure and plan.plan.name == "kmeans" else 0.0)

    real = masks.score
    monkeypatch.setattr(masks, "score", score)
    first, *rows = masks.mask_rows(Amount(quick=True))
    assert len(asked) == 2 * len(plans) == 2 * len(rows)
    assert (first.name, first.value) == ("secagg_effect_plans", pytest.approx(0.2))
    for plan in (plans["linear"], plans["robust-groups"]):
        data = masks.sites_for(plan)
        assert real(plan, data, 1, secure=True) == real(plan, data, 1, secure=False)
