"""Nearest neighbours on noised prototypes: means of clusters, and a curve no line follows."""

import numpy as np
import pytest
from method_room import (
    blobs,
    method_plan,
    persons,
    state_of,
    trained,
    uniform,
    well_started,
    workload,
)
from sklearn.linear_model import LinearRegression

from fedflow.errors import Refusal
from fedflow.learning.contribution import summed_values
from fedflow.learning.evaluation import exact_score
from fedflow.learning.first_model import plan_model
from fedflow.learning.methods import SUMS, method_of
from fedflow.learning.methods.prototypes import predicted, prototypes_of
from fedflow.learning.strategy import step_along

MADE = workload(2)


def plan_of(clusters=3, neighbours=1, **fields):
    return method_plan(
        strategy__name="prototypes",
        method__clusters=clusters,
        method__neighbours=neighbours,
        **fields,
    )


def test_each_prototype_has_the_mean_target_of_its_cluster():
    points, belongs = blobs()
    y = np.array([-0.5, 0.1, 0.9])[belongs] + 0.05 * uniform(len(points), 4)
    plan = well_started(plan_of, plan__rounds=8)
    state = state_of(trained(plan, MADE, persons(points, y)))
    prototypes, targets, counts = prototypes_of(state, MADE, plan)
    assert counts == pytest.approx([90] * 3, abs=0.5)
    for each in range(3):
        middle = points[belongs == each].mean(axis=0)
        at = np.linalg.norm(prototypes - middle, axis=1).argmin()
        assert prototypes[at] == pytest.approx(middle, abs=0.01)
        assert targets[at] == pytest.approx(y[belongs == each].mean(), abs=0.01)


def test_it_follows_what_no_line_does():
    x = uniform((1_500, 2))
    y = np.where(x[:, 0] * x[:, 1] > 0, 0.7, -0.7)
    plan = plan_of(clusters=24, neighbours=2, plan__rounds=6)
    state = state_of(trained(plan, MADE, persons(x, y)))
    fresh = uniform((500, 2), seed=8)
    truth = np.where(fresh[:, 0] * fresh[:, 1] > 0, 0.7, -0.7)
    score = exact_score(MADE, persons(fresh, truth), state, plan)
    line = LinearRegression().fit(x, y)
    assert np.mean((line.predict(fresh) - truth) ** 2) > 0.4
    assert score < 0.2


def test_a_prediction_is_the_mean_of_the_nearest_by_distance_and_count():
    plan = plan_of(clusters=3, neighbours=2)
    columns = np.array(
        [[-0.5, 0.5, 0.9], [0.0, 0.0, 0.0], [-1.0, 1.0, 0.3], [10.0, 30.0, -4.0]], np.float32
    )
    state = {SUMS: columns.ravel()}
    # in the middle: equally far from the first two, the third has no units
    assert predicted(np.zeros((1, 2)), state, plan) == pytest.approx([0.5])
    assert predicted(np.array([[-0.5, 0.0]]), state, plan)[0] == pytest.approx(-1.0, abs=0.01)
    alone = plan_of(clusters=3, neighbours=1)
    assert predicted(np.array([[1.0, 0.0]]), state, alone) == pytest.approx([1.0])


def test_without_units_the_middle_is_said():
    plan = plan_of()
    state = plan_model(MADE, plan)
    said, _ = method_of(plan).judged(MADE, persons(uniform((4, 2))), state, plan)
    assert np.array_equal(said, np.zeros((4, 1)))


@pytest.mark.parametrize("noise", [1.0, 100.0])
def test_heavy_noise_stays_within_the_bounds(noise):
    points, belongs = blobs()
    y = belongs - 1.0
    plan = plan_of(neighbours=5, plan__rounds=6, privacy__noise_multiplier=noise)
    for seed in range(3):
        federation = trained(plan, MADE, persons(points, y), seed=seed)
        assert np.isfinite(federation.state).all()
        prototypes, targets, _ = prototypes_of(state_of(federation), MADE, plan)
        assert np.abs(prototypes).max() <= 1.0
        assert np.abs(targets).max() <= 1.0
        said, _ = method_of(plan).judged(MADE, persons(points), state_of(federation), plan)
        assert np.abs(said).max() <= 1.0 + 1e-9


def test_a_unit_depends_on_itself_alone_and_is_clipped():
    plan = plan_of(privacy__clipping_norm=0.4)
    state, method = plan_model(MADE, plan), method_of(plan)
    people = persons(uniform((5, 4, 2)), uniform((5, 4), 3))
    values = method.unit_values(MADE, people, state, plan)
    other = persons(
        np.concatenate([people.x[:2], uniform((3, 4, 2), 7)]),
        np.concatenate([people.y[:2], uniform((3, 4), 8)]),
    )
    assert np.array_equal(method.unit_values(MADE, other, state, plan)[:2], values[:2])
    one = persons(9 * uniform((1, 2)), [[40.0]])
    assert np.linalg.norm(summed_values(method, MADE, one, state, plan)) <= 0.4 * (1 + 1e-9)


def test_every_party_comes_to_the_same_bits():
    points, belongs = blobs()
    plan = plan_of(plan__rounds=4, privacy__noise_multiplier=0.5)
    federation = trained(plan, MADE, persons(points, belongs - 1.0), rounds=2)
    total = uniform(12) * 30
    one, other = (step_along(federation.state.copy(), total.copy(), plan) for _ in range(2))
    assert one.tobytes() == other.tobytes() != federation.state.tobytes()


def test_what_does_not_suit_is_refused():
    with pytest.raises(Refusal, match="target_bounds"):
        plan_model(workload(2, target_bounds=None), plan_of())
    with pytest.raises(ValueError, match=r"method\.neighbours is missing"):
        plan_of(neighbours=None)
    with pytest.raises(ValueError, match=r"does not go with privacy\.mechanism"):
        plan_of(privacy__mechanism="local")
