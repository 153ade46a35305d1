"""AUC, histograms and their noise; the server's step; baselines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learning_fixtures import plan_with, site_rows, write_csv
from sklearn.metrics import roc_auc_score

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse, Refusal
from fedflow.learning import baselines, randhie
from fedflow.learning.auc import binned_auc, exact_auc
from fedflow.learning.evaluation import exact_score, noisy_counts, score_counts
from fedflow.learning.randhie import workload
from fedflow.learning.scoring import GRID, noise_share_stddev, score_of
from fedflow.learning.workload import Persons, initial_model


def model(seed=1, scale=0.3):
    rng = np.random.default_rng(seed)
    return {
        n: rng.normal(0, scale, a.shape).astype("f4") for n, a in initial_model(workload).items()
    }


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 6))
def test_exact_auc_agrees_with_scikit_learn(seed, n, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, n) / 3
    labels = np.r_[0.0, 1.0, rng.integers(0, 2, n - 2)]
    weights = rng.uniform(0.1, 2, n)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert exact_auc(scores, labels, weights) == pytest.approx(expected, abs=1e-12)


def test_auc_of_one_class_is_one_half():
    assert exact_auc(np.arange(3.0), np.ones(3), np.ones(3)) == 0.5


@given(st.integers(0, 2**32 - 1))
def test_auc_derivatives(seed):
    rng = np.random.default_rng(seed)
    p, n = rng.uniform(1, 9, 6), rng.uniform(1, 9, 6)
    auc, by_p, by_n = binned_auc(p, n)
    for i in range(6):
        step = np.eye(6)[i] * 1e-6
        assert (binned_auc(p + step, n)[0] - auc) / 1e-6 == pytest.approx(by_p[i], abs=1e-5)
        assert (binned_auc(p, n + step)[0] - auc) / 1e-6 == pytest.approx(by_n[i], abs=1e-5)


def test_every_person_weighs_exactly_one_grid_unit_total(data):
    plan = plan_with()
    total = score_counts(workload, data.train, model(), plan)
    assert total.dtype == np.int64
    assert total.shape == (20,)
    assert total.sum() == GRID * len(data.train)
    for person in range(len(data.train)):
        p = data.train
        one = Persons(p.x[[person]], p.y[[person]], p.mask[[person]], (p.ids[person],))
        alone = score_counts(workload, one, model(), plan)
        assert (alone >= 0).all()
        assert alone.sum() == GRID
        assert np.linalg.norm(alone) <= GRID


def test_weights_are_exact_for_row_counts_that_do_not_divide_the_grid():
    persons = Persons(
        np.zeros((1, 7, 35), "f4"), np.zeros((1, 7), "f4"), np.ones((1, 7), bool), ("a",)
    )
    assert score_counts(workload, persons, model(), plan_with()).sum() == GRID


def test_histogram_auc_approaches_the_exact_one(tmp_path):
    data = workload.load(write_csv(tmp_path / "s.csv", site_rows(persons=400)))
    arrays = model()
    arrays["linear.weight"][0, list(randhie.NUMERIC).index("female")] = 2.0
    exact = exact_score(workload, data.train, arrays, plan_with())
    gaps = []
    for bins in (4, 1000):
        plan = plan_with(evaluation__bins=bins)
        binned = score_of(score_counts(workload, data.train, arrays, plan), plan, 1)
        gaps.append(abs(binned[0] - exact))
    assert gaps[1] < 0.02
    assert exact > 0.6


def test_a_model_of_huge_weights_still_gives_a_histogram(data):
    arrays = model(scale=3e37)
    total = score_counts(workload, data.holdout, arrays, plan_with())
    assert total.sum() == GRID * len(data.holdout)


def test_shares_of_the_fewest_honest_sites_reach_the_planned_noise(data, csprng):
    plan = plan_with(evaluation__bins=1000, cohort__minimum=5, cohort__colluders=2)
    quiet = score_counts(workload, data.holdout, model(), plan)
    noise = sum(noisy_counts(workload, data, model(), plan, csprng) - quiet for _ in range(3))
    assert noise.dtype == np.int64
    assert noise.std() == pytest.approx(4.0 * GRID, rel=0.08)


def test_too_little_noise_for_the_grid_is_refused():
    with pytest.raises(Refusal) as caught:
        noise_share_stddev(plan_with(evaluation__noise_multiplier=0.01))
    assert caught.value.code == "noise-too-small"


def test_standard_error_is_what_noise_does(tmp_path, csprng):
    data = workload.load(write_csv(tmp_path / "s.csv", site_rows(persons=3000)))
    plan = plan_with(evaluation__noise_multiplier=2.0)
    quiet = score_counts(workload, data.train, model(), plan)
    share = noise_share_stddev(plan)
    rng = np.random.default_rng(0)
    aucs, errors = [], []
    for _ in range(400):
        noise = np.rint(rng.normal(0, share * np.sqrt(6), 20)).astype(np.int64)
        auc, error = score_of(quiet + noise, plan, 6)
        aucs.append(auc)
        errors.append(error)
    assert np.std(aucs) == pytest.approx(np.mean(errors), rel=0.15)


def test_noise_that_drowns_a_class_says_nothing_was_learned():
    plan = plan_with()
    total = np.r_[np.full(10, -5), np.full(10, 7)].astype(np.int64)
    assert score_of(total, plan, 6) == (0.5, 0.5)
    with pytest.raises(Misuse):
        score_of(total[:-1], plan, 6)


# ---- the server's step


# ---- baselines


def test_baselines_learn_and_judge_on_all_held_out_persons(tmp_path):
    sites = {
        f"site-{i}": workload.load(write_csv(tmp_path / f"{i}.csv", site_rows(200, seed=i)))
        for i in range(3)
    }
    for number, data in enumerate(sites.values()):
        assert data.train.x.shape[1:] == (5, 35), number
    plan = plan_with(plan__rounds=8, training__local_steps=20, training__learning_rate=1.0)
    found = baselines.compute(workload, sites, plan, Csprng.from_seed(bytes(32)))
    assert set(found.alone) == set(sites)
    assert found.alone_mean == pytest.approx(np.mean(list(found.alone.values())))
    assert len(baselines.pooled_holdout(sites)) == sum(len(d.holdout) for d in sites.values())
    for auc in (found.pooled, found.federated, found.alone_mean):
        assert 0.65 < auc < 0.85
