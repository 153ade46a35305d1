"""The server's optimisers against slow, obvious ones, and their memory inside the model file."""

import hashlib
import math

import numpy as np
import pytest
import torch
from learning_fixtures import plan_with
from plans import SITE, SUMMED

from fedflow.errors import Misuse, Violation
from fedflow.learning.model_file import ModelSpec, decode_model, encode_model, flatten
from fedflow.learning.server_state import (
    CLIPPING_NORM,
    MOMENTUM,
    SECOND_MOMENT,
    STEPS,
    clipping_norm_of,
    initial_state,
    memory_views,
    model_spec_of,
    parameters,
    state_spec,
)
from fedflow.learning.strategy import CLIPPING_RATE, next_model
from fedflow.learning.summed_noise import BIT_WEIGHT

D, SITES = 23, 5
MODEL = {
    "b.weight": np.arange(20, dtype=np.float32).reshape(4, 5) / 10,
    "a": np.array([3.0, -1.0, 0.5], np.float32),
}
ADAM = {
    "strategy__server_optimizer": "adam",
    "strategy__server_learning_rate": 0.05,
    "strategy__server_adaptivity": 1e-8,
}
YOGI = {
    "strategy__server_optimizer": "yogi",
    "strategy__server_learning_rate": 0.05,
    "strategy__server_adaptivity": 0.125,
}
ADAGRAD = {**YOGI, "strategy__server_optimizer": "adagrad"}
SCAFFOLD = {"strategy__name": "scaffold", "training__local_steps": 4}
MOVING = {"strategy__server_momentum": 0.9, "strategy__server_learning_rate": 0.3}
ADAPTIVE = {**SITE, "privacy__clipping_quantile": 0.5}


def total_of(means, plan, bit=None):
    """The opened sum over all sites whose mean is ``means``."""
    coding = plan.coding(SITES, 8.0)
    values = means if bit is None else np.append(means, bit)
    steps = np.rint(np.asarray(values, np.float64) * SITES * coding.values.scale).astype(np.int64)
    return np.append(steps, SITES * coding.weights.limit).astype(np.uint32)


def directions(rounds):
    numbers = np.arange(D, dtype=np.int64)
    return [((numbers * 37 + number * 11) % 101 - 50) / 64 for number in range(rounds)]


def run(plan, vector, rounds, span=1 << 20):
    for mean in directions(rounds):
        vector = next_model(vector, total_of(mean, plan), SITES, plan, 8.0, sites=SITES, span=span)
    return vector


@pytest.mark.parametrize(
    ("fields", "make"),
    [
        ({}, lambda p: torch.optim.SGD(p, lr=1.0)),
        (MOVING, lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9)),
        (ADAM, lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.9, 0.99), eps=1e-8)),
    ],
)
def test_every_server_optimiser_steps_as_torch_does(fields, make):
    plan = plan_with(**SUMMED, **fields)
    weights = torch.nn.Parameter(torch.from_numpy(flatten(MODEL)).double())
    optimizer = make([weights])
    for mean in directions(6):
        weights.grad = -torch.from_numpy(mean)
        optimizer.step()
    ours = run(plan, flatten(initial_state(MODEL, plan)), 6)
    np.testing.assert_allclose(ours[:D], weights.detach().numpy(), atol=2e-6)


@pytest.mark.parametrize("kind", ["yogi", "adagrad", "adam"])
def test_yogi_and_adagrad_step_as_reddi_et_al_write_them(kind):
    """Algorithm 2 of "Adaptive federated optimization", one coordinate at a time in floats."""
    plan = plan_with(**SUMMED, **{**YOGI, "strategy__server_optimizer": kind})
    ours = flatten(initial_state(MODEL, plan))
    tau, x = 0.125, [float(v) for v in ours[:D]]
    m, v = [0.0] * D, [0.0 if kind == "adam" else tau**2] * D
    for number, mean in enumerate(directions(4), 1):
        total = total_of(mean, plan)
        scale = plan.coding(SITES, 8.0).values.scale
        for j in range(D):
            g = float(total[j].astype(np.int32)) / scale / SITES
            m[j] = g if kind == "adagrad" else 0.9 * m[j] + 0.1 * g
            sign = (v[j] > g * g) - (v[j] < g * g)
            v[j] = {
                "adagrad": v[j] + g * g,
                "yogi": v[j] - 0.01 * g * g * sign,
                "adam": 0.99 * v[j] + 0.01 * g * g,
            }[kind]
            first, second = m[j], v[j]
            if kind == "adam":  # ours corrects the bias, as Kingma and Ba do
                first, second = first / (1 - 0.9**number), second / (1 - 0.99**number)
            x[j] += 0.05 * first / (math.sqrt(second) + tau)
        ours = next_model(ours, total, SITES, plan, 8.0, sites=SITES)
        np.testing.assert_allclose(ours[:D], x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fields", [{}, MOVING, ADAM, YOGI, ADAGRAD, SCAFFOLD])
def test_the_result_does_not_depend_on_the_span(fields):
    plan = plan_with(**(fields if fields is SCAFFOLD else {**SUMMED, **fields}))
    whole = run(plan, flatten(initial_state(MODEL, plan)), 4)
    for span in (1, 7, 22, 23, 24):
        assert run(plan, flatten(initial_state(MODEL, plan)), 4, span).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        (MOVING, "2766d7a25ee84f20"),
        (ADAM, "5b083f468ac7dfea"),
    ],
)
def test_the_next_model_has_the_same_bits_everywhere(fields, digest):
    plan = plan_with(**SUMMED, **fields)
    vector = run(plan, flatten(initial_state(MODEL, plan)), 5)
    assert hashlib.sha256(vector.tobytes()).hexdigest()[: len(digest)] == digest


def test_one_adam_step_in_scalars():
    """Python floats, one coordinate at a time: what another implementation would write."""
    plan = plan_with(**SUMMED, **ADAM)
    vector = flatten(initial_state(MODEL, plan))
    after = run(plan, vector, 1)
    mean = total_of(directions(1)[0], plan)[:-1].view(np.int32).astype(float)
    scale = plan.coding(SITES, 8.0).values.scale
    for at in range(D):
        g = float(mean[at]) / scale / SITES
        first, second = 0.9 * 0.0 + (1.0 - 0.9) * g, 0.99 * 0.0 + (1.0 - 0.99) * (g * g)
        step = (first / (1.0 - 0.9)) / (math.sqrt(second / (1.0 - 0.99)) + 1e-8)
        assert np.float32(float(vector[at]) + 0.05 * step) == after[at]
    memory = memory_views(after, plan, D)
    assert memory[STEPS].tolist() == [1.0]
    assert memory[MOMENTUM].size == memory[SECOND_MOMENT].size == D


def test_a_file_holds_the_model_first_and_comes_back_whole():
    plan = plan_with(**ADAPTIVE, **ADAM)
    state = initial_state(MODEL, plan)
    spec = state_spec(ModelSpec.of(MODEL), plan)
    assert ModelSpec.of(state) == spec
    assert model_spec_of(spec, plan) == ModelSpec.of(MODEL)
    assert flatten(state)[:D].tolist() == flatten(MODEL).tolist()
    assert sorted(set(state) - set(MODEL)) == [CLIPPING_NORM, MOMENTUM, SECOND_MOMENT, STEPS]
    back = decode_model(encode_model(state), spec)
    assert set(parameters(back)) == set(MODEL)
    assert clipping_norm_of(back, plan) == plan.privacy.clipping_norm
    views = memory_views(flatten(state), plan, D)
    assert views[CLIPPING_NORM].tolist() == [plan.privacy.clipping_norm]


def test_a_plan_without_memory_has_a_file_of_the_model_alone():
    plan = plan_with()
    assert encode_model(initial_state(MODEL, plan)) == encode_model(MODEL)
    assert clipping_norm_of(MODEL, plan) == plan.privacy.clipping_norm


def test_memory_of_another_plan_is_refused():
    moving, adam = plan_with(**SUMMED, **MOVING), plan_with(**SUMMED, **ADAM)
    spec = state_spec(ModelSpec.of(MODEL), moving)
    for plan in (plan_with(), adam):
        with pytest.raises(Violation, match="optimiser needs"):
            model_spec_of(spec, plan)
    with pytest.raises(Misuse):
        memory_views(np.zeros(D, np.float32), moving, D)
    with pytest.raises(Misuse):
        state_spec(ModelSpec((("~mine", (3,)),)), moving)


def test_the_clipping_norm_goes_to_its_quantile():
    """Sites whose norms are spread evenly over 0..10: at quantile 0.7 the norm ends at 7."""
    plan = plan_with(**{**ADAPTIVE, "privacy__clipping_quantile": 0.7}, privacy__clipping_norm=0.1)
    vector = flatten(initial_state(MODEL, plan))
    for _ in range(200):
        norm = float(memory_views(vector, plan, D)[CLIPPING_NORM][0])
        share = min(norm / 10.0, 1.0)
        total = total_of(np.zeros(D), plan, BIT_WEIGHT * norm * share)
        before = norm
        vector = next_model(vector, total, SITES, plan, 8.0, sites=SITES)
        norm = float(memory_views(vector, plan, D)[CLIPPING_NORM][0])
        assert norm == pytest.approx(before * (1 - CLIPPING_RATE * (share - 0.7)), rel=1e-5)
    assert norm == pytest.approx(7.0, rel=0.02)
    assert vector[:D].tolist() == flatten(MODEL).tolist()


@pytest.mark.parametrize("bit", [-7.9, 7.9])
def test_a_bit_beyond_reason_moves_the_norm_by_one_step_at_most(bit):
    plan = plan_with(**ADAPTIVE)
    vector = flatten(initial_state(MODEL, plan))
    after = next_model(vector, total_of(np.zeros(D), plan, bit), SITES, plan, 8.0, sites=SITES)
    norm = float(memory_views(after, plan, D)[CLIPPING_NORM][0]) / plan.privacy.clipping_norm
    assert 1 - CLIPPING_RATE <= norm <= 1 + CLIPPING_RATE


def test_an_overflowing_memory_is_no_model():
    plan = plan_with(**SUMMED, **MOVING)
    vector = flatten(initial_state(MODEL, plan))
    vector[:D] = 3.4e38
    memory_views(vector, plan, D)[MOMENTUM][:] = 3.4e38
    with pytest.raises(Violation, match="finite"):
        next_model(vector, total_of(np.ones(D), plan), SITES, plan, 8.0, sites=SITES)
