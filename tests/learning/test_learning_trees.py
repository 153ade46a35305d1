"""Boosted trees and forests: what they learn, what a unit adds, and that trees are everybody's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_fixtures import site_rows, write_csv
from method_room import method_plan, persons, state_of, trained, uniform, workload

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse, Refusal
from fedflow.learning import randhie
from fedflow.learning.contribution import summed_values
from fedflow.learning.evaluation import exact_score
from fedflow.learning.first_model import plan_model
from fedflow.learning.methods import method_of
from fedflow.learning.methods.trees import LEAVES, TREES, drawn, inputs_of
from fedflow.learning.model_file import ModelSpec, flatten, unflatten
from fedflow.learning.server_state import initial_state, state_spec
from fedflow.learning.strategy import step_along
from fedflow.learning.workload import Persons

AUC = {
    "evaluation__metric": "auc",
    "evaluation__bins": 10,
    "evaluation__error_bound": None,
}
NAMES = ("gbdt", "forest")
BINARY = workload(3, classes=2, target_bounds=(0.0, 1.0))
VALUE = workload(3)


def plan_of(name="gbdt", trees=40, depth=3, rounds=4, **fields):
    more = {"strategy__server_learning_rate": 2.0} if name == "gbdt" else {}
    more |= {"method__trees": trees, "method__depth": depth, "method__bins": 4}
    return method_plan(strategy__name=name, plan__rounds=rounds, **{**AUC, **more, **fields})


def first_state(made, plan):
    return initial_state(plan_model(made, plan), plan)


def exclusive_or(people=900, seed=0):
    """Two features of which neither alone says anything, and one that never does."""
    x = uniform((people, 3), seed)
    return persons(x, (x[:, 0] > 0) != (x[:, 1] > 0))


def several_rows(units, rows=3, seed=0):
    """Units with one to ``rows`` rows, of which the last one's padding is not all zero."""
    x = uniform((units, rows, 3), seed).astype(np.float32)
    y = (uniform((units, rows), seed + 9) > 0).astype(np.float32)
    counts = 1 + np.arange(units) % rows
    mask = np.arange(rows)[None] < counts[:, None]
    return Persons(x, y, mask, tuple(map(str, range(units))))


def take(units, rows):
    return Persons(
        units.x[rows], units.y[rows], units.mask[rows], tuple(units.ids[i] for i in rows)
    )


def taught(made, plan, rounds=2, seed=3):
    """A state some rounds on, by made-up sums."""
    state = first_state(made, plan)
    spec, vector = state_spec(ModelSpec.of(plan_model(made, plan)), plan), flatten(state)
    d = method_of(plan).dimension(made, plan)
    for number in range(rounds):
        total = 20 * np.abs(uniform(d, seed + number)) * np.repeat([0.3, 1.0], d // 2)
        vector = step_along(vector, total, plan)
    return unflatten(vector, spec)


@pytest.mark.parametrize("name", NAMES)
def test_an_interaction_is_learned_that_no_linear_model_sees(name):
    plan = plan_of(name, trees=80)
    found = trained(plan, BINARY, exclusive_or())
    score = exact_score(BINARY, exclusive_or(seed=5), state_of(found), plan)
    assert score > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_predicted_in_the_workloads_own_units(name):
    made = workload(3, target_bounds=(100.0, 300.0))
    x, fresh = uniform((900, 3)), uniform((500, 3), 7)
    fields = {"evaluation__metric": "mse", "evaluation__error_bound": 40_000.0}
    plan = plan_of(name, trees=80, **fields, evaluation__bins=None)
    state = state_of(trained(plan, made, persons(x, 200 + 80 * np.sign(x[:, 0] * x[:, 1]))))
    truth = 200 + 80 * np.sign(fresh[:, 0] * fresh[:, 1])
    error = exact_score(made, persons(fresh, truth), state, plan)
    assert error < (0.3 if name == "gbdt" else 0.7) * 80**2  # the mean alone: 80 squared


def test_rounds_go_on_where_one_forest_only_averages():
    """On a sum of effects, trees that see what others left undone come nearer than their mean."""
    x, fresh = uniform((900, 3)), uniform((500, 3), 7)
    weights = np.array([0.5, 0.3, -0.2])
    fields = {"evaluation__metric": "mse", "evaluation__error_bound": 4.0, "evaluation__bins": None}
    errors = {}
    for name, rounds in (("gbdt", 8), ("forest", 4), ("plain", 1)):
        more = {"strategy__server_learning_rate": 2.0} if rounds > 1 else {}
        kind = name if rounds > 1 else "forest"
        plan = plan_of(kind, trees=80, rounds=rounds, **fields, **more)
        state = state_of(trained(plan, VALUE, persons(x, x @ weights)))
        errors[name] = exact_score(VALUE, persons(fresh, fresh @ weights), state, plan)
    assert max(errors["gbdt"], errors["forest"]) < 0.5 * errors["plain"]


def test_one_stump_without_noise_is_newtons_step():
    plan = plan_of(trees=1, depth=1, rounds=1, strategy__server_learning_rate=1.0)
    everybody = exclusive_or(300)
    state = state_of(trained(plan, BINARY, everybody))
    (tree,) = drawn(plan, inputs_of(BINARY, plan).cuts, 0, 1)
    right = everybody.x[:, 0, tree.feature[0]] > tree.cut[0]
    y = everybody.y[:, 0]
    shared = (y - 0.5).mean() / 0.25
    for leaf, inside in enumerate((~right, right)):
        rest = ((y - 0.5)[inside] - shared * 0.25).mean() / 0.25
        assert state[LEAVES][leaf] == pytest.approx(shared + rest, abs=2e-3)


def test_the_leaves_of_one_forest_hold_the_means_of_their_people():
    plan = plan_of("forest", trees=4, depth=2, rounds=1)
    everybody = exclusive_or(300)
    state = state_of(trained(plan, BINARY, everybody))
    for number, tree in enumerate(drawn(plan, inputs_of(BINARY, plan).cuts, 0, 4)):
        leaf = tree.leaf(everybody.x[:, 0])
        for at in range(4):
            if np.any(leaf == at):
                share = (4 * state[LEAVES][4 * number + at] + 2) / 4
                assert share == pytest.approx(everybody.y[leaf == at].mean(), abs=0.02)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), units=st.integers(2, 12))
def test_a_units_values_are_its_own(name, seed, units):
    """Alone, among others, in another order: the same bits; and padding says nothing."""
    plan = plan_of(name)
    state, everybody = taught(BINARY, plan), several_rows(units, seed=seed)
    values = method_of(plan).unit_values(BINARY, everybody, state, plan)
    order = np.argsort(Csprng.from_seed(bytes([seed]) * 32).uint64(units))
    again = method_of(plan).unit_values(BINARY, take(everybody, order), state, plan)
    assert np.array_equal(again, values[order])
    alone = method_of(plan).unit_values(BINARY, take(everybody, [0]), state, plan)
    assert np.array_equal(alone[0], values[0])
    other = Persons(
        np.where(everybody.mask[:, :, None], everybody.x, 0.5).astype(np.float32),
        np.where(everybody.mask, everybody.y, 1).astype(np.float32),
        everybody.mask,
        everybody.ids,
    )
    assert np.array_equal(method_of(plan).unit_values(BINARY, other, state, plan), values)


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_weighs_one_in_each_tree_and_is_within_the_norm_that_is_said(name):
    plan = plan_of(name)
    values = method_of(plan).unit_values(BINARY, several_rows(60), first_state(BINARY, plan), plan)
    gradient, curvature = values.reshape(60, 2, 10, 8).swapaxes(0, 1)
    assert curvature.sum(axis=2) == pytest.approx(0.25)
    assert np.abs(gradient.sum(axis=2)).max() <= 0.5
    assert np.linalg.norm(values, axis=1).max() <= np.sqrt(5 / 16 * 10) + 1e-9


def test_nobody_adds_more_than_the_clipping_norm():
    plan = plan_of(privacy__clipping_norm=0.7)
    state, everybody = first_state(BINARY, plan), several_rows(40)
    for at in range(40):
        total = summed_values(method_of(plan), BINARY, take(everybody, [at]), state, plan)
        assert np.linalg.norm(total) <= 0.7 * (1 + 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_step_has_the_same_bits_whatever_the_order_of_sites(name):
    plan = plan_of(name, strategy__server_momentum=0.5 if name == "gbdt" else 0.0)
    everybody = exclusive_or(120)
    parts = [take(everybody, np.arange(at, 120, 3)) for at in range(3)]
    words = [
        summed_values(method_of(plan), BINARY, part, first_state(BINARY, plan), plan)
        for part in parts
    ]
    grid = [np.rint(each * 2**20).astype(np.int64) for each in words]  # as the sum is: integers
    states = []
    for order in ((0, 1, 2), (2, 0, 1)):
        total = sum(grid[i] for i in order) / 2.0**20
        vector = flatten(first_state(BINARY, plan))
        for _ in range(2):
            vector = step_along(vector, total, plan)
        states.append(vector.tobytes())
    assert states[0] == states[1]


def test_the_step_is_element_wise_in_one_order():
    """Against plain Python numbers, added one after another."""
    plan = plan_of(trees=8, rounds=2, privacy__noise_multiplier=0.5, method__ridge=4.0)
    total = 40 * uniform(2 * 4 * 8) + np.repeat([0.0, 10.0], 32)
    vector = step_along(flatten(first_state(BINARY, plan)), total, plan)
    gradient, curvature = [list(map(float, part)) for part in total.reshape(2, -1)]
    noise = 0.5 * 20.0
    whole = [0.0, 0.0]
    for g, h in zip(gradient, curvature, strict=True):
        whole = [whole[0] + g, whole[1] + h]
    shared = whole[0] / (max(whole[1], 0.0) + noise * 32**0.5)
    shared = min(max(shared, -2.0), 2.0)
    for at, (g, h) in enumerate(zip(gradient, curvature, strict=True)):
        rest = (g - shared * h) / (max(h, 0.0) + (0.25 * 4.0 + noise))
        rest = min(max(rest, -2.0), 2.0)
        assert vector[64 + at] == np.float32((shared + 2.0 * rest) / 4.0)


def test_momentum_moves_the_trees_of_earlier_rounds_on():
    plan = plan_of(trees=4, depth=1, rounds=2, strategy__server_momentum=0.5)
    total = np.concatenate([np.full(4, 3.0), np.full(4, 10.0)])
    once = step_along(flatten(first_state(BINARY, plan)), total, plan)
    twice = step_along(once, total, plan)
    d, leaves = 8, 4
    first = once[d : d + leaves]
    assert np.all(first != 0)
    assert twice[d : d + leaves] == pytest.approx(1.5 * first)
    assert twice[d + leaves : d + 2 * leaves] == pytest.approx(first)


@pytest.mark.parametrize("name", NAMES)
def test_leaves_of_noise_alone_are_finite_and_near_zero(name):
    plan = plan_of(name, privacy__noise_multiplier=1.0)
    d = method_of(plan).dimension(BINARY, plan)
    vector = flatten(first_state(BINARY, plan))
    for number in range(4):
        vector = step_along(vector, 20.0 * uniform(d, number), plan)
    spec = state_spec(ModelSpec.of(plan_model(BINARY, plan)), plan)
    assert np.abs(unflatten(vector, spec)[LEAVES]).max() <= 4.0


def test_the_plans_noise_is_in_every_number_of_the_sum():
    loud = plan_of(privacy__noise_multiplier=2.0, privacy__clipping_norm=2.0, rounds=1)
    one = persons(np.zeros((3, 3)))
    found = trained(loud, BINARY, one)
    sums = state_of(found)["sums"]
    # three sites, noise for two: sqrt(3 / 2) of 4; 640 numbers tell it within 12 %, 4 deviations
    assert np.std(sums) == pytest.approx(4.0 * np.sqrt(1.5), rel=0.12)
    again = state_of(trained(loud, BINARY, one, seed=1))["sums"]
    assert np.mean(sums == again) < 0.01


def test_masks_change_nothing():
    plan, everybody = plan_of(trees=8), exclusive_or(120)
    plain, masked = (trained(plan, BINARY, everybody, secure=secure) for secure in (False, True))
    assert np.array_equal(plain.state, masked.state)


def test_everybody_finds_the_same_trees_and_another_plan_others():
    plan = plan_of()
    cuts = inputs_of(BINARY, plan).cuts

    def told(plan, first=0, count=40):
        trees = drawn(plan, cuts, first, count)
        return [(tree.feature.tolist(), tree.cut.tolist()) for tree in trees]

    assert told(plan) == told(type(plan).from_canonical(plan.canonical()))
    assert told(plan)[7:9] == told(plan, 7, 2)
    assert told(plan) != told(plan_of(privacy__delta=2e-5))
    assert len({str(tree) for tree in told(plan)}) > 35


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    depth=st.integers(1, 5),
    number=st.integers(0, 99),
)
def test_no_node_divides_what_cannot_reach_it(counts, depth, number):
    """Along every path the cuts of a feature are within what the nodes above left of it."""
    cuts = tuple(tuple(float(at) for at in range(count)) for count in counts)
    plan = plan_of(depth=depth, trees=4, plan__name=f"n{number}")
    for tree in drawn(plan, cuts, 0, 2):
        stack = [(0, {})]
        while stack:
            node, bounds = stack.pop()
            if node >= len(tree.cut):
                continue
            feature, cut = int(tree.feature[node]), float(tree.cut[node])
            low, high = bounds.get(feature, (-np.inf, np.inf))
            if np.isfinite(cut):
                assert low < cut < high
                stack.append((2 * node + 1, bounds | {feature: (low, cut)}))
                stack.append((2 * node + 2, bounds | {feature: (cut, high)}))
            else:  # nothing is left to divide
                for each, places in enumerate(cuts):
                    low, high = bounds.get(each, (-np.inf, np.inf))
                    assert not any(low < place < high for place in places)


def test_the_packaged_study_is_divided_by_what_its_columns_mean(tmp_path):
    made = randhie.workload
    plan = plan_of(method__bins=None)
    cuts = inputs_of(made, plan).cuts
    loaded = made.load(write_csv(tmp_path / "site.csv", site_rows()))
    x = inputs_of(made, plan).of(loaded.train.x)
    assert x.shape[2] == len(cuts)
    assert all(list(each) == sorted(set(each)) for each in cuts)
    rows = [row for row in site_rows() if row["zper"] == loaded.train.ids[0]]
    assert x[0, 0, -1] == pytest.approx(float(rows[0]["xage"]), abs=0.01)
    values = method_of(plan).unit_values(made, loaded.train, first_state(made, plan), plan)
    assert np.isfinite(values).all()


def test_missing_values_go_left():
    plan = plan_of(trees=1, depth=1, rounds=1)
    (tree,) = drawn(plan, inputs_of(BINARY, plan).cuts, 0, 1)
    assert tree.leaf(np.full((2, 3), np.nan)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"method__trees": None}, "method.trees is missing"),
        ({"method__depth": None}, "method.depth is missing"),
        ({"method__clusters": 3}, "method.clusters is not for"),
        ({"method__trees": 41}, "not the same number in each"),
        ({"strategy__server_optimizer": "adam"}, "no other server_optimizer"),
        ({"privacy__mechanism": "local"}, "does not go with privacy.mechanism"),
        ({"name": "forest", "strategy__server_momentum": 0.5}, "server_momentum is not for"),
        (
            {"name": "forest", "rounds": 1, "strategy__server_learning_rate": 2.0},
            "leaves say what their people are",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        plan_of(**fields)


@pytest.mark.parametrize(
    ("made", "fields", "text"),
    [
        (workload(3), {"method__bins": None}, "it has none .`cuts`."),
        (workload(3, classes=5), {}, "has 5"),
        (workload(3, target_bounds=None), {}, "target_bounds"),
        (workload(3, bounds=None), {}, "bounds"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_workload_that_does_not_suit_is_refused(name, made, fields, text):
    with pytest.raises(Refusal, match=text):
        plan_model(made, plan_of(name, **fields))


def test_there_are_no_more_trees_than_the_plans():
    plan = plan_of(trees=2, rounds=1)
    state = taught(BINARY, plan, rounds=1)
    assert state[TREES][0] == 2
    with pytest.raises(Misuse, match="no more"):
        step_along(flatten(state), np.ones(32), plan)
