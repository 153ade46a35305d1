"""Sparse updates: public coordinates, the same at every site, and nothing else moves or is sent."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learning_fixtures import plan_with
from plans import AUTO, SITE, SUMMED

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse
from fedflow.learning.contribution import contribution
from fedflow.learning.model_file import unflatten
from fedflow.learning.randhie import workload as randhie
from fedflow.learning.server_state import ROUND, memory_sizes, memory_views
from fedflow.learning.sparse import sent_places, spread
from fedflow.learning.strategy import next_model
from fedflow.learning.update_coding import SPAN
from fedflow.learning.workload import PersonData, Persons
from fedflow.secagg.vectors import packed_size
from fedflow.simulation.federation import Federation
from fedflow.wire.messages import Kind

TENTH = {"secure_aggregation__density": 0.1}


def sparse(density=0.1, **fields):
    return plan_with(secure_aggregation__density=density, **fields)


def people(count=30, seed=1):
    features = randhie.build_model().linear.in_features
    csprng = Csprng.from_seed(seed.to_bytes(32, "big"))
    x = csprng.uniform(count * features).reshape(count, 1, features).astype(np.float32)
    y = (csprng.uniform(count) < x[:, 0, 0]).astype(np.float32)[:, None]
    some = Persons(x, y, np.ones((count, 1), bool), tuple(map(str, range(count))))
    return PersonData(some, some)


@given(st.floats(0.001, 1.0), st.integers(1, 3000), st.integers(0, 50))
def test_the_coordinates_are_as_many_as_planned_ascending_and_each_once(density, d, number):
    plan = sparse(density)
    places, count = sent_places(plan, d, number), plan.sent(d)
    assert density * d - 1e-6 <= count <= max(1, density * d + 1)
    if places is None:
        assert count == d
        return
    assert len(places) == count == plan.vector_length(Kind.TRAIN, d) - 1
    assert (np.diff(places) > 0).all()
    assert 0 <= places[0] <= places[-1] < d


def test_every_coordinate_is_as_likely_in_every_round():
    """500 rounds of 20 of 200: 50 each on average, deviation below 7; rounds do not repeat."""
    plan = sparse()
    chosen = [sent_places(plan, 200, number) for number in range(500)]
    counts = np.bincount(np.concatenate(chosen), minlength=200)
    assert abs(counts - 50).max() < 40
    both = [len(np.intersect1d(a, b)) for a, b in itertools.pairwise(chosen)]
    assert np.mean(both) == pytest.approx(2.0, abs=0.3)
    other = sparse(plan__name="other")
    assert not np.array_equal(chosen[0], sent_places(other, 200, 0))


def test_all_rounds_of_a_cycle_send_the_same():
    plan = sparse(participation__groups=3, evaluation__every=3)
    assert np.array_equal(sent_places(plan, 99, 0), sent_places(plan, 99, 2))
    assert not np.array_equal(sent_places(plan, 99, 2), sent_places(plan, 99, 3))


@pytest.mark.parametrize("span", [SPAN, 7])
@pytest.mark.parametrize("groups", [None, 3])
def test_the_sum_is_spread_over_the_coordinates_of_its_round(span, groups):
    grouped = {"participation__groups": 3, "evaluation__every": 3} if groups else {}
    plan, d = sparse(0.25, **grouped), 41
    vector = np.zeros(d + sum(memory_sizes(plan, d).values()), np.float32)
    coding, expected = plan.coding(4, 8.0), np.zeros(d)
    for number in range(6):
        values = np.linspace(-1, 1, plan.sent(d))
        steps = np.rint(values * 4 * coding.values.scale).astype(np.int64)
        total = np.append(steps, 4 * coding.weights.limit).astype(np.uint32)
        if not groups or number % 3 == 2:
            expected[sent_places(plan, d, number)] += values
        vector = next_model(vector, total, 4, plan, 8.0, sites=4, dimension=d, span=span)
        assert np.allclose(vector[:d], expected, atol=1e-6)
        assert memory_views(vector, plan, d)[ROUND][0] == number + 1
    with pytest.raises(Misuse, match="is not that of a model of"):
        next_model(vector, total, 4, plan, 8.0, sites=4)


def test_momentum_goes_on_where_nothing_was_sent():
    plan, d = sparse(0.5, strategy__server_momentum=0.5), 4
    vector = np.zeros(d + sum(memory_sizes(plan, d).values()), np.float32)
    coding = plan.coding(4, 8.0)
    total = np.append(np.full(2, 4 * coding.values.limit // 8), 4 * coding.weights.limit)
    first = next_model(vector, total.astype(np.uint32), 4, plan, 8.0, sites=4, dimension=d)
    zero = np.array([0, 0, 4 * coding.weights.limit], np.uint32)
    second = next_model(first, zero, 4, plan, 8.0, sites=4, dimension=d)
    sent = sent_places(plan, d, 0)
    assert np.allclose(first[sent], 1.0, atol=1e-6)
    assert np.allclose(second[:d], first[:d] * 1.5, atol=1e-6)


MECHANISMS = (
    {},
    {"training__optimizer": "adam", "training__proximal": 0.1},
    SUMMED,
    SITE,
    SITE | {"privacy__clipping_quantile": 0.5},
)


@pytest.mark.parametrize("fields", MECHANISMS)
def test_a_site_sends_the_coordinates_of_the_round_and_the_others_stay(fields):
    """Far less noise than signal, so that a coordinate that did move would be seen."""
    plan = sparse(0.3, **{"plan__rounds": 8, "privacy__sample_rate": 1.0, **fields}, **AUTO)
    quiet = plan.privacy.model_copy(update={"noise_multiplier": 0.01})
    plan = plan.model_copy(update={"privacy": quiet})
    sites = [people(seed=seed) for seed in range(1, 6)]
    federation = Federation(randhie, sites, plan, Csprng.from_seed(bytes(32)), secure=True)
    d = federation.dimension
    for number in range(3):
        before = federation.state[:d].copy()
        opened = federation.round()
        assert opened.total.size == plan.vector_length(Kind.TRAIN, d) < d
        moved = np.flatnonzero(federation.state[:d] != before)
        assert set(moved) <= set(sent_places(plan, d, number))
        assert len(moved) > plan.sent(d) // 2


def test_a_sparse_update_is_the_dense_one_of_one_step_at_its_coordinates():
    """One step of the summed gradient: what is sent is what would be sent anyway."""
    fields = SUMMED | {"privacy__sample_rate": 1.0}
    vectors = []
    for density in (1.0, 0.2):
        plan = sparse(density, **fields)
        federation = Federation(randhie, [people()] * 4, plan, Csprng.from_seed(bytes(32)))
        state = unflatten(federation.state, federation.spec)
        vector = contribution(
            randhie, people(), state, plan, Kind.TRAIN, sites=4, value_range=8.0,
            csprng=Csprng.from_seed(bytes(32)),
        ).vector  # fmt: skip
        vectors.append(vector / plan.coding(4, 8.0).values.scale)
    places = sent_places(plan, len(vectors[0]), 0)
    noise = 1.5 * plan.privacy.clipping_norm / plan.divisor(randhie.reference_persons)
    assert np.abs(vectors[0][places] - vectors[1]).max() < 12 * noise


def test_a_tenth_of_the_coordinates_is_a_tenth_of_the_bytes():
    dense, tenth = (plan_with(**f).vector_length(Kind.TRAIN, 10_000) for f in ({}, TENTH))
    assert (dense, tenth) == (10_001, 1_001)
    assert packed_size(tenth, 16) * 20 < packed_size(dense, 32) * 1.01


def test_values_are_put_in_their_places():
    assert spread(np.array([2.0, 3.0]), np.array([1, 3]), 5).tolist() == [0, 2, 0, 3, 0]
    assert spread(np.zeros(0), np.zeros(0, np.int64), 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy__name": "scaffold"},
        {"strategy__name": "fedbuff", "strategy__buffer": 5},
        SUMMED | {"strategy__name": "linear"},
    ],
)
def test_strategies_that_need_every_coordinate_say_so(fields):
    with pytest.raises(ValueError, match=re.escape("leave out secure_aggregation.density")):
        plan_with(**fields, **TENTH)
