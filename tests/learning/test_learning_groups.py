"""Groups and the median of their means: who is asked, what is stepped along, and against whom."""

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from learning_fixtures import plan_with
from plans import SITE, SUMMED
from test_learning_strategies import QUIET, STEEP, Task, site

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse, Refusal, Violation
from fedflow.learning.groups import check_asked, check_groups, deal, group_of_round, median
from fedflow.learning.server_state import (
    GROUP_MEANS,
    ROUND,
    initial_state,
    memory_sizes,
    memory_views,
)
from fedflow.learning.strategy import next_model
from fedflow.learning.update_coding import SPAN
from fedflow.privacy.plan_cost import plan_cost
from fedflow.simulation.federation import Federation
from fedflow.wire.messages import Kind, Order

GROUPED = {
    "cohort__minimum": 3,
    "cohort__colluders": 0,
    "plan__rounds": 12,
    "participation__groups": 3,
    "evaluation__every": 3,
}
#: Five steps bring a steep site to within a thousandth of its optimum.
QUICK = {**QUIET, "training__local_steps": 5, "training__learning_rate": 0.2}
MANIFEST = bytes(range(32))


def order(plan, invited, number=1, kind=Kind.TRAIN, manifest=MANIFEST):
    return Order(
        manifest=manifest,
        sequence=1,
        round=number,
        attempt=1,
        kind=int(kind),
        model=bytes(32),
        previous=bytes(32),
        value_range=1.0,
        dimension=1,
        deadline=0,
        invited=invited,
    )


@given(st.integers(3, 9), st.sets(st.integers(0, 500), min_size=9, max_size=60), st.integers(0, 99))
def test_a_deal_puts_each_site_into_one_group_and_all_are_alike_in_size(groups, roster, cycle):
    dealt = deal(groups, roster, MANIFEST, cycle)
    assert sorted(itertools.chain(*dealt)) == sorted(roster)
    assert all(list(group) == sorted(group) for group in dealt)
    sizes = [len(group) for group in dealt]
    assert len(dealt) == groups
    assert max(sizes) - min(sizes) <= 1
    assert dealt == deal(groups, sorted(roster, reverse=True), MANIFEST, cycle)


def test_any_two_sites_are_together_as_often_as_chance_has_it():
    """2 of the 8 others are in one's group of 3: a quarter of 2,000 cycles, deviation about 19."""
    together = Counter()
    for cycle in range(2_000):
        for group in deal(3, range(9), MANIFEST, cycle):
            together.update(itertools.combinations(group, 2))
    assert len(together) == 36
    assert all(abs(count - 500) < 120 for count in together.values())
    assert deal(3, range(9), bytes(32), 0) != deal(3, range(9), MANIFEST, 0)


def test_each_round_of_a_cycle_asks_another_group_and_nobody_else_may_be_asked():
    plan = plan_with(**GROUPED)
    for cycle in range(5):
        asked = [group_of_round(plan, MANIFEST, range(9), 3 * cycle + k) for k in (1, 2, 3)]
        assert tuple(asked) == deal(3, range(9), MANIFEST, cycle)
    mine = group_of_round(plan, MANIFEST, range(9), 1)
    check_asked(plan, order(plan, mine), range(9))
    check_asked(plan, order(plan, (), kind=Kind.EVALUATE), range(9))
    check_asked(plan_with(), order(plan, (3, 4)), range(9))
    other = group_of_round(plan, MANIFEST, range(9), 2)
    for invited in ((), other, mine[:-1], tuple(sorted({*mine, other[0]}))):
        with pytest.raises(Violation, match="whose turn round 1 is") as caught:
            check_asked(plan, order(plan, invited), range(9))
        assert caught.value.code == "wrong-group"
    with pytest.raises(Misuse):
        group_of_round(plan_with(), MANIFEST, range(9), 1)


values = npst.arrays(
    np.float64,
    st.tuples(st.integers(1, 9), st.integers(1, 5)),
    elements=st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0]),
)


@given(values, st.permutations(range(9)))
def test_the_median_is_numpys_whatever_the_order_and_has_no_negative_zero(means, order):
    found = median(means)
    assert np.allclose(found, np.median(means, axis=0))
    shuffled = means[[i for i in order if i < len(means)]]
    assert median(shuffled).tobytes() == found.tobytes()
    assert not np.signbit(found[found == 0]).any()


def totals(plan, means, count):
    """The sums that open when ``count`` sites send exactly ``means`` float64[d], nothing between.

    uint32[d + 1]."""
    coding = plan.coding(9, 8.0)
    steps = np.rint(np.asarray(means) * count * coding.values.scale).astype(np.int64)
    return np.append(steps, count * coding.weights.limit).astype(np.uint32)


@pytest.mark.parametrize("span", [SPAN, 2])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_model_stays_for_a_cycle_and_then_steps_along_the_median(span, momentum):
    plan = plan_with(**GROUPED, strategy__server_momentum=momentum)
    start = np.arange(5, dtype=np.float32)
    vector = np.concatenate([start, np.zeros(sum(memory_sizes(plan, 5).values()), np.float32)])
    groups = np.array([[1, 2, 3, 0, -1], [-5, 7, 3, 0, 0.5], [2, -6, 7.5, 0, 0.25]])
    direction, running = median(groups), np.zeros(5)
    expected = start.astype(np.float64)
    for cycle in range(2):
        for turn, mean in enumerate(groups):
            assert np.array_equal(vector[:5], expected.astype(np.float32))
            total = totals(plan, mean, 3)
            vector = next_model(vector, total, 3, plan, 8.0, sites=9, span=span)
            assert memory_views(vector, plan, 5)[ROUND][0] == 3 * cycle + turn + 1
        running = momentum * running + direction
        expected = expected + running
    assert np.allclose(vector[:5], expected, atol=1e-5)
    assert not memory_views(vector, plan, 5)[GROUP_MEANS].any(), "nothing goes on into the next"


def test_a_mean_that_overflows_a_float_is_a_violation():
    plan = plan_with(**GROUPED, secure_aggregation__value_range="auto")
    vector = np.zeros(2 + sum(memory_sizes(plan, 2).values()), np.float32)
    coding = plan.coding(9, 2.0**127)
    total = np.array([coding.values.limit * 3] * 2 + [1], np.uint32)
    declared = plan_with(
        **GROUPED,
        secure_aggregation__value_range="auto",
        strategy__weighting="declared",
    )
    with pytest.raises(Violation):
        next_model(vector, total, 3, declared, 2.0**127, sites=9)


def garbage(optimum=-1e3):
    """A site whose data say something absurd: its update is as long as the range allows."""
    return site(2.0, optimum)


def run(sites, rounds, **fields):
    # clamped to a range of 8, as every update is: that is all a sum can do against one site
    plan = plan_with(**{**QUICK, "cohort__minimum": 3, **fields})
    federation = Federation(Task(), sites, plan, Csprng.from_seed(bytes(32)))
    for _ in range(rounds):
        federation.round()
    return float(federation.model()["line.weight"][0, 0])


@pytest.mark.parametrize("value_range", [8.0, "auto"])
def test_one_wrong_site_of_nine_ruins_a_mean_and_not_a_median(value_range):
    sites = [STEEP] * 8 + [garbage()]
    auto = {"secure_aggregation__value_range": value_range, "privacy__clipping_norm": 50.0}
    mean = run(sites, 4, **auto)
    robust = run(sites, 12, **GROUPED, **auto)
    assert abs(mean - 1.0) > 0.5
    assert robust == pytest.approx(1.0, abs=0.02)


def test_two_wrong_sites_lose_against_five_groups_of_three():
    """At most two groups of five are spoilt, whoever is in them; with three groups both may be."""
    sites = [STEEP] * 13 + [garbage()] * 2
    assert abs(run(sites, 3) - 1.0) > 0.5
    five = {**GROUPED, "plan__rounds": 10, "participation__groups": 5, "evaluation__every": 5}
    assert run(sites, 10, **five) == pytest.approx(1.0, abs=0.02)


def test_two_wrong_sites_of_nine_win_a_cycle_only_where_they_spoil_two_groups():
    sites = [STEEP] * 7 + [garbage()] * 2
    plan = plan_with(**{**QUICK, **GROUPED})
    federation = Federation(Task(), sites, plan, Csprng.from_seed(bytes(32)))
    seen = set()
    for _ in range(40):  # both are in one group in a quarter of the cycles
        spoilt = sum(any(i >= 7 for i in federation.round().survivors) for _ in range(3))
        right = abs(float(federation.state[0]) - 1.0) < 0.01
        assert right == (spoilt < 2)
        seen.add(spoilt)
        if seen == {1, 2}:
            return
    pytest.fail("the groups of 40 cycles were of one kind")


def test_groups_of_honest_sites_learn_what_the_mean_learns():
    """And it is no FedAvg in disguise: where groups differ, the median is not the mean."""
    assert run([STEEP] * 9, 6, **GROUPED) == pytest.approx(1.0, abs=1e-3)
    mixed = [STEEP] * 5 + [site(0.5, -1.0)] * 4  # no three groups share four alike
    assert abs(run(mixed, 6, **GROUPED) - run(mixed, 2)) > 0.02


def test_local_training_of_a_cycle_starts_from_one_model():
    plan = plan_with(**{**QUICK, **GROUPED})
    federation = Federation(Task(), [STEEP] * 9, plan, Csprng.from_seed(bytes(32)))
    models = []
    for _ in range(6):
        models.append(float(federation.model()["line.weight"][0, 0]))
        federation.round()
    assert models[0] == models[1] == models[2] != models[3] == models[4] == models[5]


@pytest.mark.parametrize("fields", [SUMMED | {"privacy__clipping_norm": 1e3}, SITE])
def test_noise_in_shares_goes_into_every_groups_sum(fields):
    plan = plan_with(**{**QUIET, **GROUPED, "privacy__noise_multiplier": 1e-3, **fields})
    federation = Federation(Task(), [STEEP] * 9, plan, Csprng.from_seed(bytes(32)), secure=True)
    for _ in range(3):
        federation.round()
    assert federation.rounds == 3
    assert federation.state[0] != 0


def test_a_site_pays_once_a_cycle():
    plain = plan_with(**{**GROUPED, "participation__groups": None}, privacy__noise_multiplier=2.0)
    grouped = plan_with(**GROUPED, privacy__noise_multiplier=2.0)
    third = {row.round: row.train_epsilon_pld for row in plan_cost(plain).rows}
    for row in plan_cost(grouped).rows:
        assert row.train_epsilon_pld == third[math.ceil(row.round / 3)]


def test_groups_too_small_for_a_sum_are_refused():
    plan = plan_with(**GROUPED)
    check_groups(plan, 9)
    with pytest.raises(Refusal, match="8 sites in 3 groups are 2 in the smallest") as caught:
        check_groups(plan, 8)
    assert caught.value.code == "too-few-sites"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"plan__rounds": 13}, "plan.rounds is a multiple"),
        ({"evaluation__every": 2}, "evaluation.every is a multiple"),
        ({"participation__fraction": 0.5}, "groups say who is asked"),
        ({"participation__spare": 1}, "groups say who is asked"),
        ({"participation__strata": ("north-*",)}, "groups say who is asked"),
        ({"strategy__name": "scaffold"}, "does not go with participation.groups"),
        ({"strategy__name": "fedbuff", "strategy__buffer": 5}, "does not go with"),
        (SITE | {"privacy__clipping_quantile": 0.5}, "wrong sites would move it"),
    ],
)
def test_what_does_not_go_with_groups_is_said(fields, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        plan_with(**{**GROUPED, **fields})


def test_the_memory_is_in_the_first_file():
    plan = plan_with(**GROUPED)
    state = initial_state({"w": np.ones((2, 3), np.float32)}, plan)
    assert state[GROUP_MEANS].shape == (18,)
    assert state[ROUND].tolist() == [0]
    assert list(memory_sizes(plan, 6)) == sorted(memory_sizes(plan, 6))
