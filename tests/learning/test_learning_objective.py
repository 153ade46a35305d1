"""Class weights and robust losses: what they do to one row, a clipped sum and wrong labels."""

import math

import numpy as np
import pytest
import torch
from clipping_models import ROWS, Task, logistic, oracle, perceptron, units
from hypothesis import given
from hypothesis import strategies as st
from learning_fixtures import plan_with

from fedflow.audit.empirical.canaries import CanaryWorkload
from fedflow.crypto.csprng import Csprng
from fedflow.errors import Refusal
from fedflow.learning import baselines
from fedflow.learning.clipping import Clipper
from fedflow.learning.contribution import summed_gradient
from fedflow.learning.dpsgd import train_plain, train_private
from fedflow.learning.objective import Objective, objective
from fedflow.learning.randhie import workload as randhie
from fedflow.learning.workload import PersonData, Persons, initial_model
from fedflow.simulation.federation import Federation

QUIET = {
    "cohort__minimum": 2,
    "cohort__colluders": 0,
    "privacy__clipping_norm": 1e3,
    "privacy__noise_multiplier": 1e-9,
    "privacy__sample_rate": 1.0,
    "training__local_steps": 40,
    "training__learning_rate": 0.5,
}


class Logits(torch.nn.Module):
    """A line through the origin: its weight is the log odds of y at x = 1."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1, bias=False)
        torch.nn.init.zeros_(self.line.weight)

    def forward(self, x):
        return self.line(x).squeeze(-1)


class Votes(Task):
    """``count`` persons with x = 1, of whom some have y = 1: the model learns the odds."""

    def __init__(self, count=20):
        super().__init__(Logits)
        self.reference_persons = count


def votes(ones, count=20):
    y = np.zeros((count, 1), np.float32)
    y[:ones] = 1
    mask = np.ones((count, 1), bool)
    one = Persons(np.ones((count, 1, 1), np.float32), y, mask, tuple(map(str, range(count))))
    return PersonData(one, one)


def odds(data, train=train_private, **fields):
    plan = plan_with(**{**QUIET, **fields})
    return float(train(Votes(), data, initial_model(Votes()), plan, Csprng.from_seed(bytes(32)))[0])


def test_a_plan_without_either_trains_by_the_workloads_own_loss():
    assert objective(randhie, plan_with()) is randhie
    changed = objective(randhie, plan_with(training__robust_loss=0.5))
    assert changed.name == randhie.name
    assert changed.reference_persons == randhie.reference_persons
    assert objective(changed, plan_with(training__robust_loss=0.5)) is changed
    with pytest.raises(AttributeError):
        _ = changed.vocabulary


@given(st.floats(0.01, 1.0), st.floats(1e-6, 1 - 1e-6))
def test_the_robust_loss_is_the_generalised_cross_entropy(q, p):
    task = Task(logistic, lambda scores, y: scores)
    loss = torch.tensor([[-math.log(p)]], dtype=torch.float64, requires_grad=True)
    made = Objective(task, (), q).loss(loss, torch.zeros(1, 1))
    assert float(made.detach()) == pytest.approx((1 - p**q) / q, rel=1e-6)
    assert float(made.detach()) <= 1 / q
    (slope,) = torch.autograd.grad(made.sum(), loss)
    assert float(slope) == pytest.approx(p**q, rel=1e-6)


@pytest.mark.parametrize("build", [logistic, perceptron])
@pytest.mark.parametrize("method", ["auto", "hooks", "ghost"])
@pytest.mark.parametrize("norm", [0.05, 1e4])
def test_each_units_changed_loss_is_clipped_by_every_method(build, method, norm):
    """The oracle loops over units with the formula written out once more."""

    def written_out(scores, y):
        p = torch.sigmoid(torch.where(y > 0.5, scores, -scores))
        return torch.where(y > 0.5, 3.0, 0.5) * (1 - p**0.7) / 0.7

    batch = units(6, ROWS)
    changed = objective(
        Task(build), plan_with(training__class_weights=(0.5, 3.0), training__robust_loss=0.7)
    )
    clipper = Clipper(changed, build(), clipping_norm=norm, max_physical_batch=4, method=method)
    expected, _ = oracle(Task(build, written_out), build(), batch, norm)
    assert torch.allclose(clipper.clipped_sum(*batch), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train", [train_private, train_plain])
def test_class_weights_change_the_odds_that_are_learned(train):
    """Of 20 persons 5 have y = 1: odds of a third, which weights of 3 to 1 make even."""
    fields = {"training__local_steps": 200}
    assert odds(votes(5), train, **fields) == pytest.approx(-math.log(3), abs=1e-2)
    even = odds(votes(5), train, **fields, training__class_weights=(1.0, 3.0))
    assert even == pytest.approx(0.0, abs=1e-2)


def test_class_weights_count_in_the_summed_gradient():
    plan = plan_with(
        privacy__mechanism="summed",
        strategy__name="fedsgd",
        training__local_steps=1,
        training__learning_rate=1.0,
        privacy__sample_rate=1.0,
        training__class_weights=(1.0, 3.0),
    )
    start, csprng = initial_model(Votes()), Csprng.from_seed(bytes(32))
    gradient = summed_gradient(Votes(), votes(5), start, plan, 1e3, csprng)
    assert gradient[0] == pytest.approx((5 * 3 * 0.5 - 15 * 0.5) / 20, abs=1e-6)


def test_a_robust_loss_hardly_listens_to_wrong_labels():
    """Four of five persons agree; with q = 1 the rest are taken to be wrong."""
    trusting = odds(votes(16), training__local_steps=400)
    robust = odds(votes(16), training__local_steps=400, training__robust_loss=1.0)
    assert trusting == pytest.approx(math.log(4), abs=0.05), "cross entropy believes every label"
    assert robust > 2 * trusting


class Lines(Task):
    """Squared errors of w x, with x = 1."""

    def __init__(self):
        super().__init__(Logits, lambda scores, y: (scores - y) ** 2 / 2)
        self.reference_persons = 20


def test_for_squared_errors_it_is_the_welsch_loss():
    """Two of ten values are absurd: the mean follows them, the robust loss does not."""
    data = votes(0)
    data.train.y[:16] = 1.0
    data.train.y[16:] = 50.0
    learned = {}
    for q in (None, 0.5):
        plan = plan_with(**{**QUIET, "training__local_steps": 300}, training__robust_loss=q)
        federation = Federation(Lines(), (data, data), plan, Csprng.from_seed(bytes(32)))
        federation.round()
        learned[q] = float(federation.state[0])
    assert learned[None] > 7.5, "clamped to the range of 8, on its way to 10.8"
    assert learned[0.5] == pytest.approx(1.0, abs=0.05)


def test_baselines_train_by_the_same_loss():
    plan = plan_with(**QUIET, training__class_weights=(1.0, 3.0))
    mean = baselines._mean(
        Votes(), [votes(5)], initial_model(Votes()), plan, Csprng.from_seed(bytes(32))
    )
    assert mean[0] == pytest.approx(0.0, abs=1e-2)


def test_a_canarys_own_loss_stays_as_it_is():
    plan = plan_with(training__robust_loss=1.0)
    canaries = CanaryWorkload(randhie, 2, plan)
    assert objective(canaries, plan) is canaries
    assert isinstance(canaries.inner, Objective)


def test_class_weights_need_one_label_a_row_and_as_many_classes():
    three = objective(Task(logistic), plan_with(training__class_weights=(1.0, 1.0, 1.0)))
    with pytest.raises(Refusal, match=r"has 3 numbers.*with 2 classes"):
        three.loss(torch.zeros(2, 1), torch.zeros(2, 1))
    several = Task(logistic, lambda scores, y: scores.mean(dim=-1))
    two = objective(several, plan_with(training__class_weights=(1.0, 1.0)))
    with pytest.raises(Refusal, match="several labels in a row"):
        two.loss(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))


def test_a_label_that_is_no_class_counts_as_the_nearest_one():
    plan = plan_with(training__class_weights=(1.0, 5.0))
    made = objective(Task(logistic, lambda scores, y: torch.ones_like(y)), plan)
    assert made.loss(torch.zeros(1, 3), torch.tensor([[-4.0, 1.0, 9.0]])).tolist() == [[1, 5, 5]]
