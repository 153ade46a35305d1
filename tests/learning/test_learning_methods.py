"""Methods without a gradient go the way of updates: clipped by unit, noised, masked, summed."""

import numpy as np
import pytest
from learning_fixtures import plan_with

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Refusal
from fedflow.learning.contribution import summed_values
from fedflow.learning.first_model import plan_model
from fedflow.learning.methods import method_of
from fedflow.learning.methods.histogram import class_counts, class_weights, counts, quantile
from fedflow.learning.methods.learned import learned
from fedflow.learning.model_file import unflatten
from fedflow.learning.plan import Plan
from fedflow.learning.server_state import initial_state
from fedflow.learning.workload import PersonData, Persons
from fedflow.simulation.federation import Federation

HISTOGRAM = {
    "strategy__name": "histogram",
    "method__bins": 8,
    "cohort__minimum": 2,
    "cohort__colluders": 0,
    "privacy__mechanism": "summed",
    "privacy__sample_rate": 1.0,
    "privacy__clipping_norm": 2.0,
    "privacy__noise_multiplier": 1e-3,
    "training__local_steps": 1,
    "training__learning_rate": 1.0,
    "plan__rounds": 1,
    "evaluation": None,
    "secure_aggregation__value_range": "auto",
}


def people(values):
    x = np.asarray(values, np.float32)[:, None, :]
    ids = tuple(str(i) for i in range(len(x)))
    one = Persons(x, np.zeros(x.shape[:2], np.float32), np.ones(x.shape[:2], bool), ids)
    return PersonData(one, one)


class Flat:
    """Two features between 0 and 8."""

    name, unit_column, reference_persons, score_range = "flat", "who", 50, (0.0, 1.0)
    features, bounds = 2, (0.0, 8.0)


def federation(rounds=1, secure=False, **fields):
    plan = plan_with(**{**HISTOGRAM, "plan__rounds": rounds, **fields})
    sites = [people([[v % 8 + 0.5, np.nan] for v in range(n)]) for n in (40, 40, 40)]
    made = Federation(Flat(), sites, plan, Csprng.from_seed(bytes(32)), secure=secure)
    for _ in range(rounds):
        made.round()
    return made


def state_of(made):
    return unflatten(made.state, made.spec)


def test_the_sum_is_everybodys_histogram():
    found = counts(state_of(federation(secure=True)), Flat(), federation().plan)
    assert found[0] == pytest.approx([15] * 8 + [0], abs=0.2)
    assert found[1] == pytest.approx([0] * 8 + [120], abs=0.2)


def test_rounds_average_the_noise():
    loud = {"privacy__noise_multiplier": 4.0}
    one, many = (federation(rounds, **loud) for rounds in (1, 64))
    spread = [np.std(counts(state_of(f), Flat(), f.plan)[0][:8] - 15) for f in (one, many)]
    assert spread[1] < spread[0] / 3


def test_a_person_counts_once_however_many_rows_and_never_beyond_the_norm():
    x = np.full((1, 4, 2), 1.0, np.float32)
    person = Persons(x, np.zeros((1, 4), np.float32), np.ones((1, 4), bool), ("a",))
    for norm, expected in ((2.0, 1.0), (0.5, 0.5 / np.sqrt(2))):
        plan = plan_with(**{**HISTOGRAM, "privacy__clipping_norm": norm})
        total = summed_values(method_of(plan), Flat(), person, {}, plan)
        assert total.reshape(2, 9)[:, 1] == pytest.approx([expected] * 2)


def test_quantiles_are_where_the_counts_say():
    assert quantile(np.array([10.0, 10, 10, 10]), 0.5, 0, 4) == pytest.approx(2.0)
    assert quantile(np.array([10.0, -3, 0, 10]), 0.25, 0, 4) == pytest.approx(0.5)
    assert quantile(np.zeros(4), 0.5, 0, 4) == 2.0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"method__bins": None}, "method.bins is missing"),
        ({"method__clusters": 3}, "method.clusters is not for"),
        ({"privacy__mechanism": "local"}, "does not go with privacy.mechanism"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        plan_with(**{**HISTOGRAM, **fields})


def test_a_plan_that_only_describes_is_never_scored():
    plan = plan_with(**HISTOGRAM)
    assert not plan.is_evaluated(1)
    assert Plan.from_canonical(plan.canonical()) == plan
    with pytest.raises(ValueError, match="needs \\[evaluation\\]"):
        plan_with(**{"evaluation": None})


def test_a_workload_that_does_not_say_its_bounds_is_refused():
    class Silent(Flat):
        bounds = None

    plan = plan_with(**HISTOGRAM)
    with pytest.raises(Refusal, match="bounds"):
        plan_model(Silent(), plan)


def test_classes_are_counted_and_weighed_against():
    class Sorted(Flat):
        classes = 3
        feature_names = ("height", "width")

    plan = plan_with(**HISTOGRAM)
    x = np.full((8, 2, 2), 1.0, np.float32)
    y = np.array([[0, 0]] * 5 + [[0, 1]] + [[1, 7]] + [[np.nan, np.nan]], np.float32)
    ids = tuple(str(i) for i in range(8))
    persons = Persons(x, y, np.ones((8, 2), bool), ids)
    total = summed_values(method_of(plan), Sorted(), persons, {}, plan)
    state = {"sums": total.astype(np.float32)}
    # a person of two classes is half a person in each; a label that is none counts nowhere
    assert class_counts(state, Sorted(), plan) == pytest.approx([5.5, 1.0, 0.0])
    assert counts(state, Sorted(), plan).sum() == pytest.approx(16)
    weights = class_weights(state, Sorted(), plan)
    assert np.mean(weights) == pytest.approx(1.0)
    assert weights[1] / weights[0] == pytest.approx(5.5)
    assert weights[2] / weights[1] == pytest.approx(1.0 / (6.5 / 3) * 10)  # clamped
    assert class_weights({"sums": -state["sums"]}, Sorted(), plan) == (1.0, 1.0, 1.0)
    with pytest.raises(Refusal, match="`classes`"):
        class_weights({"sums": total[:18].astype(np.float32)}, Flat(), plan)
    quantiles, classes = learned(state, Sorted(), plan)
    assert [row[0] for row in quantiles.rows] == ["height", "width"]
    assert quantiles.rows[0][5] == pytest.approx(1.5)  # the median, in the bin from 1 to 2
    assert [row[2] for row in classes.rows] == pytest.approx(list(weights))


def test_what_every_method_learned_can_be_read():
    sizes = {
        "kmeans": {"method__clusters": 3},
        "linear": {},
        "prototypes": {"method__clusters": 3, "method__neighbours": 1},
    }

    class Judged(Flat):
        target_bounds = (0.0, 1.0)

    for name, more in sizes.items():
        fields = {**HISTOGRAM, "method__bins": None, "strategy__name": name, **more}
        del fields["evaluation"]
        plan = plan_with(**fields)
        (table,) = learned(initial_state(plan_model(Judged(), plan), plan), Judged(), plan)
        assert {"feature 0", "feature 1"} < {row[0] for row in table.rows}
        assert {len(row) for row in table.rows} == {len(table.headings)}
    with pytest.raises(Refusal, match="its model file"):
        learned({}, Flat(), plan_with())
