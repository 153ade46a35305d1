"""k-means by noised sums: Lloyd's steps exactly where there is no noise, sane where it is."""

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
from sklearn.cluster import KMeans as Reference

from fedflow.errors import Refusal
from fedflow.learning.contribution import summed_values
from fedflow.learning.evaluation import exact_score
from fedflow.learning.first_model import plan_model
from fedflow.learning.methods import SUMS, method_of
from fedflow.learning.methods.clusters import (
    count_weight,
    divided,
    first_centres,
    least_count,
    moved,
)
from fedflow.learning.methods.kmeans import centres_of
from fedflow.learning.strategy import step_along

FLAT = workload(2)


def plan_of(clusters=3, **fields):
    return method_plan(strategy__name="kmeans", method__clusters=clusters, **fields)


def found_centres(federation, plan, made=FLAT):
    return centres_of(state_of(federation), made, plan)[0]


def test_without_noise_each_round_is_a_step_of_lloyd():
    points = uniform((600, 2))
    for rounds in (1, 3):
        plan = plan_of(plan__rounds=rounds)
        # the first centres are the plan's, and in this data no cluster of them is empty
        reference = Reference(
            3, init=first_centres(plan, 2).astype(float), n_init=1, max_iter=rounds, tol=0
        )
        with np.errstate(all="ignore"):
            wanted = reference.fit(points.astype(np.float32))
        # sklearn's centres after max_iter steps
        found = found_centres(trained(plan, FLAT, persons(points)), plan)
        assert found == pytest.approx(wanted.cluster_centers_, abs=2e-3)


def test_it_finds_clusters_which_a_mean_of_updates_would_not():
    points, belongs = blobs()
    plan = well_started(plan_of, plan__rounds=8)
    federation = trained(plan, FLAT, persons(points))
    middles = np.array([points[belongs == each].mean(axis=0) for each in range(3)])
    away = np.linalg.norm(found_centres(federation, plan)[:, None] - middles, axis=2)
    assert away.min(axis=0).max() < 0.02  # one centre at each
    assert len(set(away.argmin(axis=1))) == 3
    _, counts = centres_of(state_of(federation), FLAT, plan)
    assert counts == pytest.approx([90] * 3, abs=0.5)


def test_the_score_is_the_mean_squared_distance_to_the_nearest_centre():
    points, _ = blobs()
    plan = plan_of(plan__rounds=8)
    federation = trained(plan, FLAT, persons(points))
    away = points[:, None] - found_centres(federation, plan)
    wanted = (away**2).mean(axis=2).min(axis=1).mean()
    score = exact_score(FLAT, persons(points), state_of(federation), plan)
    assert score == pytest.approx(wanted, rel=1e-3)


def test_padding_is_nobodys_row():
    plan, points = plan_of(), uniform((4, 3, 2))
    padded = persons(points)
    padded.mask[:, 2] = False
    short = persons(points[:, :2])
    state = plan_model(FLAT, plan)
    method = method_of(plan)
    found = method.unit_values(FLAT, padded, state, plan)
    assert found == pytest.approx(method.unit_values(FLAT, short, state, plan))
    federation = trained(plan, FLAT, short)
    scores = [exact_score(FLAT, who, state_of(federation), plan) for who in (padded, short)]
    assert scores[0] == pytest.approx(scores[1])


def test_a_unit_weighs_one_in_all_and_depends_on_itself_alone():
    plan, method = plan_of(), method_of(plan_of())
    state = plan_model(FLAT, plan)
    people = persons(uniform((5, 4, 2)))
    values = method.unit_values(FLAT, people, state, plan)
    assert values[:, -3:].sum(axis=1) == pytest.approx([count_weight(2)] * 5)
    other = persons(np.concatenate([people.x[:2], uniform((3, 4, 2), seed=7)]))
    assert np.array_equal(method.unit_values(FLAT, other, state, plan)[:2], values[:2])


@pytest.mark.parametrize("norm", [0.05, 0.8, 3.0])
def test_nobody_moves_the_sum_by_more_than_the_norm(norm):
    plan = plan_of(privacy__clipping_norm=norm)
    state = plan_model(FLAT, plan)
    for seed in range(20):
        one = persons(100 * uniform((1, 2), seed))
        total = summed_values(method_of(plan), FLAT, one, state, plan)
        assert np.linalg.norm(total) <= norm * (1 + 1e-9)


def test_missing_values_that_no_plan_fills_are_refused():
    points = np.array([[np.nan, 0.5]] * 50)
    with pytest.raises(Refusal, match=r"missing values and no \[preprocessing\]"):
        trained(plan_of(clusters=2, plan__rounds=2), FLAT, persons(points))


def test_a_count_that_is_mostly_noise_leaves_its_centre():
    now = np.array([[0.1, 0.2, 0.3]])
    counts = np.array([10.0, 1.9, -5.0])
    found = moved(now, np.array([[2.0, 50.0, -50.0]]), counts, 2.0)
    assert found == pytest.approx(np.array([[0.3, 0.2, 0.3]]))
    assert moved(now, np.full((1, 3), 1e9), np.full(3, 5.0), 2.0).max() == 1.0


def test_the_guard_answers_to_the_noise():
    loud = plan_of(privacy__noise_multiplier=2.0)
    assert least_count(loud, 2) == pytest.approx(2 * 2.0 * 20.0 / count_weight(2))
    assert least_count(plan_of(), 2) == 1.0


def test_an_empty_cluster_gets_half_of_the_largest():
    plan = plan_of()
    columns, counts = np.array([[0.5, -0.5, 0.9], [0.1, 0.1, 0.9]]), np.array([8.0, 30.0, 0.0])
    found = divided(columns, counts, 2.0, plan, 1)
    assert counts == pytest.approx([8.0, 15.0, 15.0])
    assert found[:, 0] == pytest.approx(columns[:, 0])
    assert found[:, [1, 2]].mean(axis=1) == pytest.approx([-0.5, 0.1])
    assert not np.array_equal(found[:, 1], found[:, 2])
    assert np.array_equal(divided(columns, np.full(3, 1.0), 2.0, plan, 1), columns)


def test_clusters_that_nobody_is_in_are_used_in_the_end():
    # In twenty dimensions all people are nearest to one or two of the first centres.
    middles = np.zeros((4, 20))
    middles[range(4), range(4)] = 0.4
    points, belongs = blobs(100, middles)
    made, plan = workload(20), plan_of(clusters=8, plan__rounds=10)
    found = found_centres(trained(plan, made, persons(points)), plan, made)
    away = np.linalg.norm(found[:, None] - middles, axis=2)
    assert away.min(axis=0).max() < 0.15
    assert len(belongs) == 400


@pytest.mark.parametrize("noise", [1.0, 100.0])
def test_heavy_noise_gives_centres_within_the_bounds(noise):
    points, _ = blobs()
    plan = plan_of(plan__rounds=6, privacy__noise_multiplier=noise)
    for seed in range(3):
        federation = trained(plan, FLAT, persons(points), seed=seed)
        found = found_centres(federation, plan)
        assert np.isfinite(federation.state).all()
        assert np.abs(found).max() <= 1.0


def test_under_moderate_noise_clusters_are_still_found():
    points, _ = blobs(per_blob=2_000)
    loud = {"privacy__noise_multiplier": 4.0, "privacy__clipping_norm": 1.0}
    plan = well_started(plan_of, plan__rounds=6, **loud)
    federation = trained(plan, FLAT, persons(points))
    assert exact_score(FLAT, persons(points), state_of(federation), plan) < 0.02


def test_first_centres_are_public_spread_and_the_plans():
    plan = plan_of(clusters=20)
    first = first_centres(plan, 2)
    assert np.array_equal(first, first_centres(plan_of(clusters=20), 2))
    assert not np.array_equal(first, first_centres(plan_of(clusters=20, plan__rounds=2), 2))
    assert np.abs(first).max() <= 0.5
    away = np.linalg.norm(first[:, None] - first, axis=2) + 9 * np.eye(20)
    assert away.min() > 0.05
    wide = first_centres(plan_of(clusters=600), 2)
    assert wide.shape == (600, 2)
    assert len(np.unique(wide, axis=0)) == 600


def test_every_party_comes_to_the_same_bits():
    points, _ = blobs()
    plan = plan_of(plan__rounds=4, privacy__noise_multiplier=0.5)
    federation = trained(plan, FLAT, persons(points), rounds=2)
    total = uniform(9) * 30
    one = step_along(federation.state.copy(), total, plan)
    other = step_along(federation.state[::1].copy(), total[::-1].copy()[::-1], plan)
    assert one.tobytes() == other.tobytes()
    assert not np.array_equal(one, federation.state)


def test_secure_sums_change_nothing():
    points, _ = blobs(per_blob=20)
    plan = plan_of(plan__rounds=1)
    one, other = (trained(plan, FLAT, persons(points), secure=secure) for secure in (0, 1))
    assert one.state.tobytes() == other.state.tobytes()


def test_a_workload_without_bounds_and_a_plan_without_clusters_are_refused():
    with pytest.raises(Refusal, match="does not say its public number of features"):
        plan_model(workload(2, bounds=None), plan_of())
    with pytest.raises(ValueError, match=r"method\.clusters is missing"):
        plan_of(clusters=None)
    with pytest.raises(ValueError, match=r"method\.neighbours is not for"):
        plan_of(method__neighbours=2)


def test_the_state_says_where_the_numbers_are():
    plan = plan_of()
    state = plan_model(FLAT, plan)[SUMS].reshape(3, 3)
    assert np.array_equal(state[:2].T, first_centres(plan, 2))
    assert np.array_equal(state[2], np.zeros(3))
