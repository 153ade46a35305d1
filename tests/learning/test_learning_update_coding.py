"""Weighted updates in the ring, and the next model: exact, checked, the same for everybody."""

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_fixtures import plan_with

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse, Refusal, Violation
from fedflow.learning.strategy import next_model, step_along
from fedflow.learning.update_coding import UpdateCoding
from fedflow.wire.messages import Kind

SEED = bytes(32)
DECLARED = {"strategy__weighting": "declared"}


def source(number=0):
    return Csprng.from_seed(number.to_bytes(32, "big"))


def updates(sites, d, scale=1.0):
    made = source(7)
    return [((made.uniform(d) * 2 - 1) * scale).astype(np.float32) for _ in range(sites)]


def total_of(coding, vectors, weights):
    mask = np.uint32((1 << coding.bits) - 1)
    coded = [
        coding.encode(v, w, source(i))
        for i, (v, w) in enumerate(zip(vectors, weights, strict=True))
    ]
    return np.sum(coded, axis=0, dtype=np.uint32) & mask


@given(
    st.integers(8, 32),
    st.integers(1, 6),
    st.integers(1, 40),
    st.floats(0.01, 100.0),
    st.booleans(),
    st.integers(0, 2**32),
)
@settings(deadline=None)
def test_the_mean_is_within_its_rounding_error(bits, sites, d, value_range, uniform, seed):
    plan = plan_with(secure_aggregation__bits=bits, **({} if uniform else DECLARED))
    coding = plan.coding(sites, value_range)
    weights = [1.0] * sites if uniform else (source(seed).uniform(sites) * 0.8 + 0.2).tolist()
    vectors = updates(sites, d, 2 * value_range)
    total = total_of(coding, vectors, weights)
    assert total.size == plan.vector_length(Kind.TRAIN, d) == d + 1
    clamped = [np.clip(v.astype(np.float64), -value_range, value_range) for v in vectors]
    wanted = sum(w * v for w, v in zip(weights, clamped, strict=True))
    steps = coding.weight_steps(total, sites, plan.weighting)
    if uniform:
        assert steps == sites * coding.weights.limit
    assert abs(steps - sum(weights) * coding.weights.limit) < sites
    summed = coding.decode_span(total, steps, 0, d, sites)
    assert np.abs(summed - wanted).max() <= sites * coding.values.resolution * (1 + 1e-6)


@pytest.mark.parametrize("bits", [8, 13, 32])
@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
def test_spans_are_the_whole(bits, weight):
    d = 70_001
    coding = UpdateCoding(5, bits, 1.0)
    (update,) = updates(1, d)
    whole = coding.encode(update, weight, source())
    assert whole.shape == (d + 1,)
    for span in (1 << 15, 70_001, 70_002, 1 << 20):
        one = source()
        edges = range(0, d + 1, span)
        parts = [coding.encode_span(update, weight, a, min(a + span, d + 1), one) for a in edges]
        assert np.array_equal(np.concatenate(parts), whole)
    assert coding.encode_span(update, weight, d + 1, d + 1, source()).size == 0
    assert coding.encode_span(update, 1.0, d, d + 1, source()).tolist() == [coding.weights.limit]


def test_a_span_needs_memory_for_a_span_only():
    update = np.zeros(8 << 20, np.float32)
    coding = UpdateCoding(5, 16, 1.0)
    tracemalloc.start()
    coding.encode_span(update, 0.5, 3 << 20, 3 << 20 | 1 << 16, source())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_the_next_model_needs_memory_for_a_span_only():
    d, plan = 4 << 20, plan_with()
    vector = np.zeros(d, np.float32)
    total = np.zeros(d + 1, np.uint32)
    total[-1] = 5 * plan.coding(5, 1.0).weights.limit
    tracemalloc.start()
    next_model(vector, total, 5, plan, 1.0, sites=5, span=1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < d * 4 + (6 << 20)


def scalar_next_model(vector, total, bits, limit, value_range, rate):
    """One coordinate at a time in Python floats: an implementation that shares nothing."""
    signed = [word - (1 << bits) if word >> (bits - 1) else word for word in total]
    weight = signed[-1] / limit
    scale = limit / value_range
    out = bytearray()
    for old, step in zip(vector, signed, strict=False):
        out += struct.pack("<f", old + rate * ((step / scale) / weight))
    return bytes(out)


@pytest.mark.parametrize(
    ("bits", "weights", "digest"),
    [
        (32, [1.0, 1.0, 1.0], "04c4c1a52cac9fa985dd1ec10d39c1c4a6e4b129416d226b18778551298841eb"),
        (12, [1.0, 1.0, 1.0], "efb09a92aaa40a865641bfbcdc4fb85b96e552f79ce77be14ed778cb03260496"),
        (21, [0.3, 1.0, 0.07], "8a3f5630ae4378d9af5a80a94b1c1afa11bd968da6b8fca4d2fdfbe4341e7e91"),
    ],
)
def test_the_next_model_has_the_same_bits_everywhere(bits, weights, digest):
    d, sites, value_range = 3_001, 4, 0.7
    changes = {} if set(weights) == {1.0} else DECLARED
    plan = plan_with(secure_aggregation__bits=bits, strategy__server_learning_rate=0.9, **changes)
    total = total_of(plan.coding(sites, value_range), updates(3, d), weights)
    vector = (source(3).uniform(d) * 4 - 2).astype(np.float32)
    limit = ((1 << (bits - 1)) - 1) // sites
    scalar = scalar_next_model(vector.tolist(), total.tolist(), bits, limit, value_range, 0.9)
    for span in (1, 7, 1_000, d, 1 << 20):
        if span == 1 and bits != 12:
            continue  # slow, and once is enough
        got = next_model(vector, total, 3, plan, value_range, sites=sites, span=span)
        assert got.tobytes() == scalar
    assert hashlib.sha256(scalar).hexdigest() == digest


@pytest.mark.parametrize("weights", [[1.0, 0.999, 1.0], [1.0, 1.0, 0.0], [0.5, 0.5, 0.5]])
def test_a_uniform_mean_refuses_other_weights(weights):
    plan = plan_with()
    total = total_of(plan.coding(3, 1.0), updates(3, 10), weights)
    with pytest.raises(Violation) as caught:
        next_model(np.zeros(10, np.float32), total, 3, plan, 1.0, sites=3)
    assert caught.value.code == "wrong-weights"
    declared = plan_with(**DECLARED)
    assert next_model(np.zeros(10, np.float32), total, 3, declared, 1.0, sites=3).shape == (10,)


def test_a_uniform_mean_over_other_sites_than_said_is_refused():
    plan = plan_with()
    total = total_of(plan.coding(4, 1.0), updates(3, 10), [1.0] * 3)
    for count in (2, 4):
        with pytest.raises(Violation, match="uniform"):
            next_model(np.zeros(10, np.float32), total, count, plan, 1.0, sites=4)


@pytest.mark.parametrize("bits", [8, 32])
def test_a_summed_weight_that_is_not_possible_is_refused(bits):
    plan = plan_with(secure_aggregation__bits=bits, **DECLARED)
    limit = plan.coding(3, 1.0).weights.limit
    for steps in (0, -1, -limit, 2 * limit + 1):
        total = np.zeros(6, np.uint32)
        total[-1] = steps % (1 << bits)
        with pytest.raises(Violation) as caught:
            next_model(np.zeros(5, np.float32), total, 2, plan, 1.0, sites=3)
        assert caught.value.code == "wrong-weights"


def test_an_update_larger_than_its_weight_allows_is_refused():
    """So that a mean never leaves the range, whatever the weights are."""
    plan = plan_with(**DECLARED)
    coding = plan.coding(3, 1.0)
    total = np.zeros(3, np.uint32)
    total[-1] = coding.weights.limit // 10
    for step, fits in ((coding.weights.limit // 10 + 4, True), (coding.weights.limit // 5, False)):
        for sign in (1, -1):
            total[0] = sign * step % 2**32
            if fits:
                moved = next_model(np.zeros(2, np.float32), total, 2, plan, 1.0, sites=3)
                assert abs(moved[0]) <= 1.0 + 1e-6
                continue
            with pytest.raises(Violation) as caught:
                next_model(np.zeros(2, np.float32), total, 2, plan, 1.0, sites=3)
            assert caught.value.code == "sum-out-of-range"


def test_a_model_that_is_not_finite_is_refused():
    plan = plan_with(strategy__server_learning_rate=100.0)
    total = total_of(plan.coding(3, 1e37), [np.full(4, 1e37, np.float32)] * 3, [1.0] * 3)
    with pytest.raises(Violation) as caught:
        next_model(np.zeros(4, np.float32), total, 3, plan, 1e37, sites=3)
    assert caught.value.code == "not-finite-model"


def test_wrong_types_shapes_and_spans_are_misuse():
    coding, plan, good = UpdateCoding(3, 32, 1.0), plan_with(), np.zeros(4, np.float32)
    for update in (np.zeros(4), np.zeros((2, 2), np.float32)):
        with pytest.raises(Misuse):
            coding.encode(update, 1.0, source())
        with pytest.raises(Misuse):
            next_model(update, np.zeros(5, np.uint32), 3, plan, 1.0, sites=3)
    for start, stop in ((-1, 2), (3, 2), (0, 6)):
        with pytest.raises(Misuse):
            coding.encode_span(good, 1.0, start, stop, source())
    for start, stop in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(Misuse):
            coding.decode_span(np.zeros(5, np.uint32), 1, start, stop, 3)
    for total in (np.zeros(4, np.uint32), np.zeros(5, np.int64)):
        with pytest.raises(Misuse):
            next_model(good, total, 3, plan, 1.0, sites=3)
    for count in (0, 4):
        with pytest.raises(Misuse):
            next_model(good, np.zeros(5, np.uint32), count, plan, 1.0, sites=3)
    for wrong in ((0, 32, 1.0), (3, 7, 1.0), (128, 8, 1.0), (3, 32, 0.0)):
        with pytest.raises(Misuse):
            UpdateCoding(*wrong)
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(Misuse):
            coding.encode(good, weight, source())
    with pytest.raises(Refusal):
        coding.encode(np.array([np.inf], np.float32), 0.5, source())


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    st.floats(0.01, 10),
)
@settings(max_examples=50)
def test_a_plain_step_is_the_scaled_mean(values, rate):
    plan = plan_with(strategy__server_learning_rate=rate)
    vector, mean = np.array(values, np.float32), np.linspace(-3, 3, len(values))
    expected = [np.float32(float(v) + rate * t) for v, t in zip(vector, mean, strict=True)]
    out = step_along(vector, mean, plan)
    assert out.dtype == np.float32
    assert out.tobytes() == np.array(expected, np.float32).tobytes()


def test_a_plain_step_has_known_bits():
    out = step_along(np.array([0.1, -2.0], "f4"), np.array([0.3, 1.0]) / 3, plan_with())
    assert out.tobytes().hex() == "cdcc4c3e5555d5bf"


def test_a_step_refuses_what_makes_no_model():
    vector, plan = np.array([1.0, -2.0], np.float32), plan_with()
    with pytest.raises(Misuse):
        step_along(vector, np.zeros(3), plan)
    with pytest.raises(Misuse):
        step_along(vector.astype(np.float64), np.zeros(2), plan)
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(Violation, match="finite"):
            step_along(vector, np.array([0.0, bad]), plan)
