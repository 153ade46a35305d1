"""Least squares from one secure sum: what scikit-learn gives without noise, and guarded with it."""

import numpy as np
import pytest
from method_room import method_plan, persons, state_of, trained, uniform, workload
from sklearn.linear_model import LinearRegression

from fedflow.errors import Refusal
from fedflow.learning.contribution import summed_values
from fedflow.learning.evaluation import exact_score
from fedflow.learning.first_model import plan_model
from fedflow.learning.methods import SUMS, method_of
from fedflow.learning.methods.linear import INTERCEPT, coefficients
from fedflow.learning.strategy import step_along

MADE = workload(3)
WEIGHTS = np.array([0.3, -0.2, 0.1])


def plan_of(**fields):
    return method_plan(strategy__name="linear", **fields)


def sample(people=900, seed=0):
    x = uniform((people, 3), seed)
    return x, 0.15 + x @ WEIGHTS + 0.1 * uniform(people, seed + 50)


def test_one_round_without_noise_is_least_squares():
    x, y = sample()
    plan = plan_of()
    found = coefficients(state_of(trained(plan, MADE, persons(x, y))), MADE, plan)
    wanted = LinearRegression().fit(x, y)
    assert found.weights == pytest.approx(wanted.coef_, abs=1e-4)
    assert found.intercept == pytest.approx(wanted.intercept_, abs=1e-4)


def test_coefficients_are_in_the_workloads_own_units():
    made = workload(3, bounds=(-40.0, 60.0), target_bounds=(100.0, 300.0))
    x, y = sample()
    x, y = 10 + 50 * x, 200 + 100 * y
    plan = plan_of(evaluation__error_bound=90_000.0)
    state = state_of(trained(plan, made, persons(x, y)))
    found, wanted = coefficients(state, made, plan), LinearRegression().fit(x, y)
    assert found.weights == pytest.approx(wanted.coef_, rel=1e-2)
    assert found.intercept == pytest.approx(wanted.intercept_, rel=1e-3)
    error = np.mean((wanted.predict(x) - y) ** 2)
    assert exact_score(made, persons(x, y), state, plan) == pytest.approx(error, rel=1e-3)


def test_the_sum_is_the_sufficient_statistics():
    x, y = sample(60)
    plan = plan_of()
    total = summed_values(method_of(plan), MADE, persons(x, y), plan_model(MADE, plan), plan)
    design = np.column_stack([np.full(60, INTERCEPT), x.astype(np.float32)])
    square = design.T @ design
    assert total[:10] == pytest.approx(square[np.triu_indices(4)], abs=1e-5)
    assert total[10:14] == pytest.approx(2 * design.T @ y, abs=1e-5)
    assert total[14] == pytest.approx(y @ y, abs=1e-5)


def test_rounds_average_the_noise_and_the_file_knows_how_many():
    x, y = sample()
    loud = {"privacy__noise_multiplier": 0.5, "privacy__clipping_norm": 3.0}
    noises, misses = [], []
    for rounds in (1, 64):
        plan = plan_of(plan__rounds=rounds, **loud)
        found = coefficients(state_of(trained(plan, MADE, persons(x, y))), MADE, plan)
        noises.append(found.noise)
        misses.append(found.ridge)
    assert noises[0] == pytest.approx(8 * noises[1])
    assert misses[0] > misses[1]


def test_ridge_pulls_to_zero():
    x, y = sample()
    state = state_of(trained(plan_of(), MADE, persons(x, y)))
    sizes = [
        np.abs(coefficients(state, MADE, plan_of(method__ridge=ridge)).weights).sum()
        for ridge in (0.0, 100.0, 10_000.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_columns_that_repeat_one_another_have_a_solution():
    x, y = sample()
    x[:, 1] = x[:, 0]
    plan = plan_of()
    state = state_of(trained(plan, MADE, persons(x, y)))
    wanted = np.mean((LinearRegression().fit(x, y).predict(x) - y) ** 2)
    assert exact_score(MADE, persons(x, y), state, plan) == pytest.approx(wanted, rel=2e-2)


@pytest.mark.parametrize("noise", [3.0, 1000.0])
def test_heavy_noise_never_leaves_the_bounds_nor_explodes(noise):
    x, y = sample(60)
    plan = plan_of(privacy__noise_multiplier=noise, privacy__clipping_norm=1.0)
    for seed in range(5):
        state = state_of(trained(plan, MADE, persons(x, y), seed=seed))
        assert np.isfinite(coefficients(state, MADE, plan).weights).all()
        said, _ = method_of(plan).judged(MADE, persons(x, y), state, plan)
        assert np.abs(said).max() <= 1.0


def test_a_pull_that_answers_to_the_noise_is_better_than_none():
    x, y = sample(150)
    plan = plan_of(privacy__noise_multiplier=4.0, privacy__clipping_norm=2.0)
    guarded, bare = [], []
    for seed in range(20):
        state = state_of(trained(plan, MADE, persons(x, y), seed=seed))
        guarded.append(exact_score(MADE, persons(x, y), state, plan))
        square = np.zeros((4, 4))
        square[np.triu_indices(4)] = state[SUMS][:10]
        square += np.triu(square, 1).T
        solved = np.linalg.solve(square, state[SUMS][10:14] / 2)
        said = np.clip(INTERCEPT * solved[0] + x @ solved[1:], -1, 1)
        bare.append(np.mean((said - y) ** 2))
    assert np.mean(guarded) < 0.7 * np.mean(bare)


def test_a_person_of_many_rows_has_the_mean_of_them():
    plan, method = plan_of(), method_of(plan_of())
    x, y = uniform((2, 5, 3)), uniform((2, 5), 9)
    whole = method.unit_values(MADE, persons(x, y), {}, plan)
    rows = method.unit_values(MADE, persons(x.reshape(-1, 3), y), {}, plan)
    assert whole == pytest.approx(rows.reshape(2, 5, -1).mean(axis=1), abs=1e-6)
    x[1], y[1] = 1.0, 0.0
    assert np.array_equal(method.unit_values(MADE, persons(x, y), {}, plan)[0], whole[0])


def test_a_score_of_two_classes_is_a_logit():
    made = workload(3, target_bounds=(0.0, 1.0))
    x = uniform((900, 3))
    y = (x @ WEIGHTS + 0.05 * uniform(900, 3) > 0).astype(float)
    plan = plan_of(evaluation__metric="auc", evaluation__error_bound=None, evaluation__bins=10)
    state = state_of(trained(plan, made, persons(x, y)))
    assert exact_score(made, persons(x, y), state, plan) > 0.95
    said, _ = method_of(plan).judged(made, persons(x, y), state, plan)
    share = 1 / (1 + np.exp(-said))
    wanted = np.clip(LinearRegression().fit(x, y).predict(x), 1e-6, 1 - 1e-6)
    assert share[:, 0] == pytest.approx(wanted, abs=2e-3)
    right = plan_of(evaluation__metric="accuracy", evaluation__error_bound=None)
    accuracy = exact_score(made, persons(x, y), state, right)
    assert accuracy == pytest.approx(np.mean((wanted > 0.5) == (y > 0.5)), abs=0.01)


def test_every_party_comes_to_the_same_bits():
    plan = plan_of(plan__rounds=3)
    federation = trained(plan, MADE, persons(*sample(90)), rounds=2)
    total = uniform(15) * 1e3
    one, other = (step_along(federation.state.copy(), total.copy(), plan) for _ in range(2))
    assert one.tobytes() == other.tobytes()
    before = federation.state[:15].astype(np.float64)
    assert np.array_equal(one[:15], (before + (total - before) / 3.0).astype(np.float32))
    assert one[15] == 3.0


def test_what_does_not_suit_is_refused():
    with pytest.raises(Refusal, match="target_bounds"):
        plan_model(workload(3, target_bounds=None), plan_of())
    with pytest.raises(Refusal, match="features"):
        plan_model(workload(None), plan_of())
    several = persons(uniform((4, 3)))
    several = type(several)(several.x, np.zeros((4, 1, 2), np.float32), several.mask, several.ids)
    with pytest.raises(Refusal, match="one target per row"):
        method_of(plan_of()).unit_values(MADE, several, {}, plan_of())
    with pytest.raises(ValueError, match=r"method\.clusters is not for"):
        plan_of(method__clusters=4)
