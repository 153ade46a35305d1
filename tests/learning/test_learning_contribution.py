"""What a training process returns: the right sum, clipped per unit, and never without noise."""

import math

import numpy as np
import pytest
import torch
from learning_fixtures import plan_with
from plans import SITE, SUMMED

from fedflow.crypto.csprng import Csprng
from fedflow.learning import contribution as module
from fedflow.learning.contribution import clipped_update, contribution, summed_gradient
from fedflow.learning.evaluation import score_counts
from fedflow.learning.model_file import flatten
from fedflow.learning.scoring import GRID, SITE_GRID
from fedflow.learning.server_state import initial_state
from fedflow.learning.summed_noise import BIT_WEIGHT, share_stddev, unit_sensitivity
from fedflow.learning.workload import PersonData, Persons
from fedflow.wire.messages import Kind

F, R = 6, 3


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.utils.skip_init(torch.nn.Linear, F, 1)
        torch.nn.init.constant_(self.line.weight, 0.1)
        torch.nn.init.zeros_(self.line.bias)

    def forward(self, x):
        return self.line(x).squeeze(-1)


class Task:
    name, unit_column, reference_persons, score_range = "task", "who", 50, (0.0, 1.0)

    def build_model(self):
        return Line()

    def loss(self, scores, y):
        return (scores - y) ** 2


def persons(count=40, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, R + 1, count)
    mask = np.arange(R)[None, :] < rows[:, None]
    x = np.where(mask[..., None], rng.normal(0, 1, (count, R, F)), 0.0).astype(np.float32)
    y = np.where(mask, (rng.random((count, R)) < 0.5), 0.0).astype(np.float32)
    return Persons(x, y, mask, tuple(map(str, range(count))))


DATA = PersonData(persons(), persons(30, seed=1))


def state(plan):
    arrays = {n: p.detach().numpy() for n, p in Line().named_parameters()}
    return initial_state(arrays, plan)


def generator(seed=b"c"):
    return Csprng.from_seed(seed.ljust(32, b"."))


def slow_sum(units, norm):
    """One unit at a time, by ordinary differentiation."""
    total = np.zeros(F + 1)
    for x, y in units:
        model = Line()
        loss = ((model(torch.from_numpy(x)) - torch.from_numpy(y)) ** 2).mean()
        torch.autograd.backward(loss)
        gradient = flatten({n: p.grad.numpy() for n, p in model.named_parameters()})
        gradient = gradient.astype(np.float64)
        total += gradient * min(1.0, norm / (np.linalg.norm(gradient) + 1e-6))
    return total


def by_person(data):
    return [(x[m], y[m]) for x, y, m in zip(data.x, data.y, data.mask, strict=True)]


def by_record(data):
    return [(x[None], y[None]) for x, y in zip(data.x[data.mask], data.y[data.mask], strict=True)]


@pytest.mark.parametrize(("unit", "units"), [("person", by_person), ("record", by_record)])
def test_the_summed_gradient_is_the_clipped_sum_over_a_public_divisor(unit, units):
    plan = plan_with(**SUMMED, privacy__unit=unit, privacy__sample_rate=1.0)
    ours = summed_gradient(Task(), DATA, flat(plan), plan, 0.3, generator())
    np.testing.assert_allclose(ours, -slow_sum(units(DATA.train), 0.3) / 50, rtol=1e-4, atol=1e-6)


def flat(plan):
    return {n: a for n, a in state(plan).items() if not n.startswith("~")}


def test_the_divisor_is_not_the_number_of_persons():
    plan = plan_with(**SUMMED, privacy__sample_rate=1.0)
    half = PersonData(persons(20), DATA.holdout)
    double = Persons.join([half.train, half.train])
    one = summed_gradient(Task(), half, flat(plan), plan, 0.3, generator())
    two = summed_gradient(
        Task(), PersonData(double, half.holdout), flat(plan), plan, 0.3, generator()
    )
    np.testing.assert_allclose(two, 2 * one, rtol=1e-5)


def test_sampling_is_secret_and_at_the_plans_rate():
    plan = plan_with(**SUMMED, privacy__sample_rate=0.25)
    counts = []
    spy = module.poisson_batches

    def counted(*args):
        for batch in spy(*args):
            counts.append(len(batch[0]))
            yield batch

    module.poisson_batches = counted
    try:
        for number in range(300):
            seed = number.to_bytes(2, "big")
            summed_gradient(Task(), DATA, flat(plan), plan, 0.3, generator(seed))
    finally:
        module.poisson_batches = spy
    # 12,000 coins of 1/4: within 7 standard deviations
    assert abs(sum(counts) - 3000) < 7 * math.sqrt(12_000 * 0.25 * 0.75)
    assert len(set(counts)) > 5


@pytest.mark.parametrize("fields", [SUMMED, SITE, {**SITE, "privacy__clipping_quantile": 0.5}])
def test_what_leaves_is_integers_with_the_plans_noise(fields):
    """Over many draws the mean is the unnoised value and the deviation is the share's."""
    plan = plan_with(
        **fields,
        privacy__sample_rate=1.0,
        cohort__minimum=3,
        cohort__colluders=1,
        privacy__noise_multiplier=2.0,
    )
    draws = []
    for number in range(200):
        vector = contribution(
            Task(),
            DATA,
            state(plan),
            plan,
            Kind.TRAIN,
            sites=3,
            value_range=64.0,
            csprng=generator(number.to_bytes(2, "big")),
        ).vector
        assert vector.dtype == np.int64
        draws.append(vector)
    assert draws[0].size + 1 == plan.vector_length(Kind.TRAIN, F + 1)
    coding, norm = plan.coding(3, 64.0), plan.privacy.clipping_norm
    share = share_stddev(plan, coding, draws[0].size, unit_sensitivity(plan, norm, 50))
    if plan.privacy.mechanism == "summed":
        exact = summed_gradient(Task(), DATA, flat(plan), plan, norm, generator())
    else:
        exact = clipped_update(Task(), DATA, flat(plan), plan, norm, generator())
    off = (np.array(draws) - exact * coding.values.scale) / share
    assert np.abs(off.mean(axis=0)).max() < 7 / math.sqrt(200)
    spread = (off**2).sum() / off.size  # 1 +- 7 standard deviations of a chi-squared
    assert abs(spread - 1) < 7 * math.sqrt(2 / off.size)


def test_a_site_update_is_clipped_whole_and_says_so():
    plan = plan_with(**SITE, privacy__clipping_quantile=0.5, training__learning_rate=10.0)
    tight = clipped_update(Task(), DATA, flat(plan), plan, 0.01, generator())
    assert np.linalg.norm(tight[:-1]) == pytest.approx(0.01)
    assert tight[-1] == 0.0
    loose = clipped_update(Task(), DATA, flat(plan), plan, 1e6, generator())
    assert loose[-1] == BIT_WEIGHT * 1e6


def test_a_training_that_diverged_is_not_told():
    wild = plan_with(**SITE, training__learning_rate=1000.0, training__local_steps=400)
    values = clipped_update(Task(), DATA, flat(wild), wild, 1.0, generator())
    assert values.tolist() == [0.0] * (F + 1)


@pytest.mark.parametrize(
    ("unit", "fields", "weight"),
    [("person", {}, GRID), ("record", {}, GRID), ("site", SITE, None)],
)
def test_one_unit_weighs_the_same_in_an_evaluation(unit, fields, weight):
    plan = plan_with(**{**fields, "privacy__unit": unit})
    arrays, holdout = flat(plan), DATA.holdout
    whole = score_counts(Task(), holdout, arrays, plan)
    assert (whole >= 0).all()
    if unit == "site":
        assert whole.sum() == SITE_GRID
        return
    units = holdout.mask.sum() if unit == "record" else len(holdout)
    assert whole.sum() == weight * units
    fewer = Persons(holdout.x[1:], holdout.y[1:], holdout.mask[1:], holdout.ids[1:])
    moved = np.abs(whole - score_counts(Task(), fewer, arrays, plan)).sum()
    assert moved == weight * (holdout.mask[0].sum() if unit == "record" else 1)
