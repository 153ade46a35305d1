"""Statistics of columns in one noised sum: exact without noise, and no more than noise allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_fixtures import WORKLOAD, describing, found, load_sites, run, weighted

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse, Refusal
from fedflow.learning.contribution import summed_values
from fedflow.learning.first_model import plan_model
from fedflow.learning.methods import method_of
from fedflow.learning.methods.columns import Column, columns_of
from fedflow.learning.methods.moments import largest_norm, parts
from fedflow.learning.statistics import noise_stddev, statistics_of
from fedflow.learning.workload import Persons
from fedflow.privacy.noise import gaussian
from fedflow.privacy.plan_cost import plan_cost


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return load_sites(tmp_path_factory.mktemp("tables"))


def test_without_noise_it_is_what_one_party_would_compute(sites):
    age, ward, code = found(sites, describing(), secure=True)
    values, shares = weighted(sites, 0)
    missing = np.isnan(values)
    assert age.missing == pytest.approx(np.average(missing, weights=shares), abs=1e-3)
    mean = np.average(values[~missing], weights=shares[~missing])
    variance = np.average((values[~missing] - mean) ** 2, weights=shares[~missing])
    assert age.mean == pytest.approx(mean, abs=0.05)
    assert age.deviation == pytest.approx(np.sqrt(variance), abs=0.05)
    assert age.quantiles[1] == pytest.approx(np.median(values[~missing]), abs=5.0)  # one bin
    for each, at in ((ward, 1), (code, 2)):
        values, shares = weighted(sites, at)
        present = ~np.isnan(values)
        expected = np.bincount(values[present].astype(int), shares[present], len(each.counts))
        assert each.counts == pytest.approx(expected, abs=0.1)
        assert each.kept == tuple(np.flatnonzero(expected[: each.column.categories] > 0))
    assert ward.missing > 0.1 > code.missing


@given(
    st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(0, 3),
    st.booleans(),
)
def test_no_unit_is_longer_than_the_largest_norm(ages, code, empty):
    rows = max(len(person) for person in ages)
    x, mask = np.zeros((len(ages), rows, 3), np.float32), np.zeros((len(ages), rows), bool)
    for at, person in enumerate(ages):
        x[at, : len(person), 0], mask[at, : len(person)] = person, True
    x[:, :, 1], x[:, :, 2] = code, np.nan if empty else 4
    units = Persons(x, np.zeros(mask.shape, np.float32), mask, tuple(map(str, range(len(ages)))))
    plan = describing()
    values = method_of(plan).unit_values(WORKLOAD, units, {}, plan)
    assert np.linalg.norm(values, axis=1).max() <= largest_norm(WORKLOAD.columns) + 1e-9
    assert (values[:, 0] == 1).all()
    for column, part in parts(WORKLOAD.columns, 20):
        first = 1 if column.categories else 3
        counted = values[:, part][:, 0] + values[:, part][:, first:].sum(axis=1)
        assert counted == pytest.approx(1.0), "missing or counted, each row once"


def test_a_person_far_out_is_clipped_like_any_other(sites):
    plan = describing(privacy__clipping_norm=0.5)
    one = Persons(*(getattr(sites[0].train, k)[:1] for k in ("x", "y", "mask", "ids")))
    total = summed_values(method_of(plan), WORKLOAD, one, {}, plan)
    assert np.linalg.norm(total) == pytest.approx(0.5)


def test_the_noise_is_as_large_as_said_and_rounds_average_it(sites):
    loud = {"privacy__noise_multiplier": 4.0, "method__bins": 200}
    one = describing(**loud)
    quiet = run(sites, describing(**{**loud, "privacy__noise_multiplier": 1e-4}))["sums"]
    spread = np.std(run(sites, one)["sums"] - quiet)
    said = noise_stddev(one, quiet.size, WORKLOAD.reference_persons, len(sites))
    # A sample deviation of 200 draws is within 4 * 5 % of the true one but once in 10^4.
    assert spread == pytest.approx(said, rel=0.2)
    many = run(sites, describing(**loud, plan__rounds=16))["sums"]
    assert np.std(many - quiet) == pytest.approx(said / 4, rel=0.2)


def test_noise_alone_makes_no_category_in_999_of_1000_jobs():
    """Counts that are nothing but noise, 300 times: more than 3 false ones have p < 3e-4."""

    class Empty:
        name, unit_column, reference_persons, score_range = "empty", "who", 50, (0.0, 1.0)
        columns = (Column("code", 0, 300, 300),)

    plan, csprng = describing(privacy__noise_multiplier=4.0), Csprng.from_seed(bytes(32))
    stddev = noise_stddev(plan, 303, 50, 3)
    false = 0
    for _ in range(300):
        sums = gaussian(303, stddev, csprng).astype(np.float32)
        state = {"sums": sums, "~rounds": np.ones(1, np.float32)}
        (code,) = statistics_of(Empty(), state, plan, sites=3)
        false += bool(code.kept)
    assert false <= 3


def test_where_noise_leaves_nothing_the_public_bounds_stand_in(sites):
    age, *_ = found(sites, describing(privacy__noise_multiplier=1e4))
    assert 0 <= age.mean <= 100
    assert age.deviation >= 1e-3 * 50
    assert all(0 <= place <= 100 for place in age.quantiles)


def test_a_describing_job_costs_one_release_a_round():
    (row,) = plan_cost(describing(privacy__noise_multiplier=4.0)).rows
    assert row.train_epsilon > 0.5
    assert row.evaluate_epsilon == row.evaluate_epsilon_pld == 0
    twice = plan_cost(describing(privacy__noise_multiplier=4.0, plan__rounds=2)).total
    assert twice.train_epsilon > row.train_epsilon


def test_any_workload_that_says_its_bounds_has_columns():
    class Flat:
        name, features, bounds = "flat", 2, (-1.0, 1.0)

    assert [c.name for c in columns_of(Flat())] == ["0", "1"]
    with pytest.raises(Refusal, match="`features` and `bounds`"):
        columns_of(type("Silent", (), {"name": "silent"})())


def test_refusals(sites):
    with pytest.raises(ValueError, match=r"method\.bins is missing"):
        describing(method__bins=None)
    with pytest.raises(Refusal, match=r'strategy\.name "moments" describes them'):
        plan_model(WORKLOAD, describing(strategy__name="histogram"))
    with pytest.raises(Misuse, match="no score"):
        method_of(describing()).judged(WORKLOAD, sites[0].train, {}, describing())
    with pytest.raises(Misuse, match="moments"):
        statistics_of(WORKLOAD, {}, describing(strategy__name="histogram"), sites=3)
