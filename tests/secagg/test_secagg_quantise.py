import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse, Refusal, Violation
from fedflow.secagg.quantise import (
    Quantiser,
    decode_integers,
    encode_integers,
    integer_limit,
)

SEED = bytes(32)


@given(
    st.integers(1, 256),
    st.integers(16, 32),
    st.floats(1e-6, 1e6),
    st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_one_step_of_error_clamped_and_never_wrapped(sites, bits, value_range, values):
    quantiser = Quantiser(bits=bits, value_range=value_range, sites=sites)
    array = np.array(values)
    coded = quantiser.encode(array, Csprng.from_seed(SEED))
    assert coded.dtype == np.uint32
    signed = coded.view(np.int32).astype(np.int64)
    assert np.abs(signed).max() <= quantiser.limit
    assert sites * quantiser.limit <= 2 ** (bits - 1) - 1
    expected = np.clip(array, -value_range, value_range)
    step = 1 / quantiser.scale
    assert np.abs(quantiser.decode(coded) - expected).max() <= step * (1 + 1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_the_worst_sum_of_all_sites_is_exact(bits, sign):
    quantiser = Quantiser(bits=bits, value_range=1.0, sites=7)
    coded = quantiser.encode(np.array([sign * 5.0]), Csprng.from_seed(SEED))
    total = np.zeros(1, np.uint32)
    for _ in range(7):
        total += coded
    assert quantiser.decode(total)[0] == pytest.approx(7 * sign)


def test_rounding_is_unbiased_and_random():
    quantiser = Quantiser(bits=12, value_range=1.0, sites=2)
    value = 0.3 / quantiser.scale
    steps = quantiser.encode(np.full(100_000, value), Csprng.from_seed(SEED)).view(np.int32)
    assert set(np.unique(steps)) == {0, 1}
    assert stats.binomtest(int(steps.sum()), 100_000, 0.3).pvalue > 1e-4
    down = quantiser.encode(np.full(100_000, -value), Csprng.from_seed(SEED)).view(np.int32)
    assert set(np.unique(down)) == {-1, 0}
    assert stats.binomtest(int(-down.sum()), 100_000, 0.3).pvalue > 1e-4


def test_grid_points_are_coded_exactly():
    quantiser = Quantiser(bits=16, value_range=1.0, sites=4)
    steps = np.arange(-quantiser.limit, quantiser.limit + 1)
    # A hair above the grid point, as the product with the scale may round down to below it.
    coded = quantiser.encode((steps + 1e-7) / quantiser.scale, Csprng.from_seed(SEED))
    assert np.array_equal(coded.view(np.int32), steps)


def test_both_float_types_and_long_vectors():
    quantiser = Quantiser(value_range=1.0, sites=10)
    values = np.linspace(-1.2, 1.2, 100_001)
    for dtype in (np.float32, np.float64):
        typed = values.astype(dtype)
        decoded = quantiser.decode(quantiser.encode(typed, Csprng.from_seed(SEED)))
        assert np.abs(decoded - np.clip(typed, -1, 1)).max() <= 1 / quantiser.scale
    assert quantiser.encode(np.zeros(0), Csprng.from_seed(SEED)).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 40_000, 69_999])
def test_one_non_finite_value_refuses_the_vector(value, at):
    values = np.zeros(70_000, np.float32)
    values[at] = value
    with pytest.raises(Refusal) as caught:
        Quantiser(value_range=1.0, sites=3).encode(values, Csprng.from_seed(SEED))
    assert caught.value.code == "non-finite"


@pytest.mark.parametrize(
    "values", [np.zeros(3, np.int64), np.zeros(3, np.float16), np.zeros((2, 2))]
)
def test_other_types_and_shapes_are_misuse(values):
    with pytest.raises(Misuse):
        Quantiser(value_range=1.0, sites=3).encode(values, Csprng.from_seed(SEED))


@pytest.mark.parametrize(
    "wrong",
    [
        {"value_range": 0.0},
        {"value_range": -1.0},
        {"value_range": float("nan")},
        {"value_range": float("inf")},
        {"value_range": 1e-300},
        {"value_range": 1e308},
        {"sites": 0},
        {"sites": 257},
        {"bits": 7},
        {"bits": 33},
        {"bits": 8, "sites": 200},
    ],
)
def test_impossible_quantisers_are_misuse(wrong):
    with pytest.raises(Misuse):
        Quantiser(**{"value_range": 1.0, "sites": 3, **wrong})


def test_a_sum_beyond_what_sites_can_send_is_refused():
    quantiser = Quantiser(bits=16, value_range=1.0, sites=4)
    top = quantiser.sites * quantiser.limit
    assert quantiser.decode(np.array([top], np.uint32))[0] == pytest.approx(4)
    for beyond in (top + 1, 1 << 31, (1 << 32) - top - 1):
        with pytest.raises(Violation) as caught:
            quantiser.decode(np.array([beyond], np.uint32))
        assert caught.value.code == "sum-out-of-range"


def test_the_proof_states_true_numbers():
    quantiser = Quantiser(bits=16, value_range=1.0, sites=6)
    assert quantiser.proof() == (
        "6 sites x 5461 = 32766 <= 2^15 - 1 = 32767: no sum of coordinates wraps"
    )


@given(st.lists(st.integers(-(10**8), 10**8), min_size=1), st.integers(1, 20))
def test_integer_sums_are_exact(values, sites):
    limit = integer_limit(sites)
    array = np.array([max(-limit, min(limit, v)) for v in values], np.int64)
    total = np.zeros(array.size, np.uint32)
    for _ in range(sites):
        total += encode_integers(array, limit)
    assert np.array_equal(decode_integers(total), sites * array)


def test_integers_beyond_their_limit_or_type_are_refused():
    for value in (101, -101, np.iinfo(np.int64).min):
        with pytest.raises(Refusal) as caught:
            encode_integers(np.array([0, value], np.int64), 100)
        assert caught.value.code == "out-of-range"
    for values, limit in (
        (np.zeros(2), 100),
        (np.zeros(2, np.int32), 100),
        (np.zeros((2, 2), np.int64), 100),
        (np.zeros(2, np.int64), 0),
        (np.zeros(2, np.int64), 1 << 31),
    ):
        with pytest.raises(Misuse):
            encode_integers(values, limit)
    with pytest.raises(Misuse):
        decode_integers(np.zeros(2, np.int64))
