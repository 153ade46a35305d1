"""Noise and secret sampling, all from the cryptographic generator.

Three samplers, each vectorised:

* :func:`gaussian`: continuous, by inverse CDF. For float mechanisms (DP-SGD on clipped gradients).
* :func:`discrete_gaussian`: exactly N_Z(0, stddev^2), for everything released on an integer grid.
* :func:`poisson_mask`: who takes part in a step. Amplification by sampling needs it kept secret.

The discrete Gaussian follows Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential
Privacy" (NeurIPS 2020), Algorithms 2 and 3: draw a discrete Laplace of integer scale t, accept it
with probability exp(-(|x| - stddev^2/t)^2 / (2 stddev^2)). Both decisions compare a uniform real U
with a real threshold. Each is first taken in float64 from 64 bits of U, with a rigorous error
margin; only when U falls inside the margin is it settled with further bits and correctly rounded
decimals. So the output law is exact, not merely close, and floating point decides nothing (Mironov,
"On Significance of the Least Significant Bits for Differential Privacy", CCS 2012).

Rejection sampling takes a variable number of rounds: running time is not constant and may reveal
the number of rejections, never the accepted values.
"""

from __future__ import annotations

import decimal
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from fedflow.errors import Misuse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedflow.crypto.csprng import Csprng

_SMALLEST_STDDEV = 2.0**-20
_LARGEST_STDDEV = 2.0**40  # scale * -ln(2^-64) then stays far below 2^53
_TWO_64 = 2.0**-64
_PIECE = 1 << 14  # draws made at once: what is worked on stays in the second-level cache


def gaussian(n: int, stddev: float, csprng: Csprng) -> NDArray[np.float64]:
    """``n`` independent draws of N(0, stddev^2) as float64[n], by inverse CDF.

    One 64-bit word per draw: its low bit is the sign, the rest the tail probability, so both tails
    reach 9 standard deviations. Misuse for a negative or non-finite ``stddev`` or ``n``.
    """
    from scipy.special import ndtri  # half a second that only who draws has to wait for

    _check_count(n)
    if not (math.isfinite(stddev) and stddev >= 0):
        raise Misuse(f"standard deviation {stddev!r} is not a finite number of at least 0")
    draws = np.empty(n, dtype=np.float64)
    for at in range(0, n, _PIECE):
        part = draws[at : at + _PIECE]
        words = csprng.uint64(part.size)
        np.add(words >> np.uint64(1), 0.5, out=part, dtype=np.float64, casting="unsafe")
        part *= _TWO_64
        ndtri(part, out=part)
        part.view(np.uint64)[...] ^= words << np.uint64(63)  # the low bit becomes that of the sign
        part *= stddev
    return draws


def poisson_mask(n: int, rate: float, csprng: Csprng) -> NDArray[np.bool_]:
    """bool[n]: each entry independently true with probability floor(rate * 2^64) / 2^64.

    Rounding down only ever lowers the sampling rate that accounting assumes. Misuse when ``rate``
    is outside 0..1.
    """
    _check_count(n)
    if not 0.0 <= rate <= 1.0:
        raise Misuse(f"sampling rate {rate!r} is not between 0 and 1")
    if rate == 1.0:
        return np.ones(n, dtype=np.bool_)
    threshold = np.uint64(int(rate * 2.0**64))
    return np.asarray(csprng.uint64(n) < threshold, dtype=np.bool_)


def discrete_gaussian(stddev: float, n: int, csprng: Csprng) -> NDArray[np.int64]:
    """``n`` independent draws of the discrete Gaussian as int64[n]: P(x) ~ exp(-x^2/(2 stddev^2)).

    ``stddev`` is in grid units, 2^-20 to 2^40 (Misuse otherwise); its float64 value is taken
    as the exact rational it is. The variance is at most stddev^2 and equal to it to float precision
    from stddev = 2 on.
    """
    _check_count(n)
    if not _SMALLEST_STDDEV <= stddev <= _LARGEST_STDDEV:
        raise Misuse(f"standard deviation {stddev!r} is not between 2^-20 and 2^40")
    out = np.empty(n, dtype=np.int64)
    done = 0
    while done < n:
        wanted = n - done
        batch = _candidates(stddev, min(wanted + wanted * 3 // 8 + 64, 1 << 17), csprng)
        taken = batch[: min(wanted, batch.size)]
        out[done : done + taken.size] = taken
        done += taken.size
    return out


def _check_count(n: int) -> None:
    if n < 0:
        raise Misuse(f"cannot draw {n} values")


def _candidates(stddev: float, n: int, csprng: Csprng) -> NDArray[np.int64]:
    """One vectorised pass of Algorithm 3 over ``n`` proposals; returns only the accepted ones."""
    scale = math.floor(stddev) + 1
    magnitude = _geometric(csprng.uint64(n), scale, csprng)
    keep = _accept(csprng.uint64(n), magnitude, stddev, scale, csprng)
    signs = np.unpackbits(np.frombuffer(csprng.bytes((n + 7) // 8), dtype=np.uint8))[:n]
    negative = signs.astype(np.bool_)
    keep &= ~(negative & (magnitude == 0))  # or zero would be drawn twice as often (Algorithm 2)
    return np.where(negative, -magnitude, magnitude)[keep]


def _geometric(words: NDArray[np.uint64], scale: int, csprng: Csprng) -> NDArray[np.int64]:
    """floor(-scale * ln U) with U in [word, word+1) / 2^64: P(X >= x) = exp(-x/scale) exactly."""
    u = words.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        energy = -np.log(u * _TWO_64)
        value = energy * scale
        # 8 ulp cover log, product and the rounding of u; 2/u covers the bits of U not drawn yet
        margin = scale * ((1.0 + energy) * 2.0**-49 + 2.0 / u)
        low, high = np.floor(np.maximum(value - margin, 0.0)), np.floor(value + margin)
        unsure = np.flatnonzero(~(low == high))
    low[unsure] = 0.0
    out = low.astype(np.int64)
    for i in unsure:
        out[i] = _exact_geometric(int(words[i]), scale, csprng)
    return out


def _accept(
    words: NDArray[np.uint64],
    magnitude: NDArray[np.int64],
    stddev: float,
    scale: int,
    csprng: Csprng,
) -> NDArray[np.bool_]:
    """U < exp(-(|x| - stddev^2/scale)^2 / (2 stddev^2)) for U in [word, word+1) / 2^64."""
    distance = magnitude - stddev * stddev / scale
    exponent = (distance / stddev) ** 2 / 2.0
    chance = np.exp(-exponent)
    # scale > stddev bounds the cancellation in distance by 3*exponent + 1 ulp; 2^-44 is 256 ulp
    margin = chance * (1.0 + exponent) * 2.0**-44 + 2.0 * _TWO_64
    u = words.astype(np.float64) * _TWO_64
    out = u < chance
    for i in np.flatnonzero(np.abs(u - chance) <= margin):
        out[i] = _exact_accept(int(words[i]), int(magnitude[i]), stddev, scale, csprng)
    return np.asarray(out, dtype=np.bool_)


def _exact_geometric(word: int, scale: int, csprng: Csprng) -> int:
    """The decision of :func:`_geometric` for one word, with as many more bits as it takes."""
    bits = 64
    while True:
        with decimal.localcontext(_context(bits)):
            unit = decimal.Decimal(2) ** bits
            high = None if word == 0 else -(decimal.Decimal(word) / unit).ln() * scale
            low = -(decimal.Decimal(word + 1) / unit).ln() * scale
            slack = decimal.Decimal(10) ** -(20 + bits // 4)
            if high is not None and math.floor(max(low - slack, decimal.Decimal(0))) == (
                answer := math.floor(high + slack)
            ):
                return answer
        word, bits = _extend(word, bits, csprng)


def _exact_accept(word: int, magnitude: int, stddev: float, scale: int, csprng: Csprng) -> bool:
    """The decision of :func:`_accept` for one word, with as many more bits as it takes."""
    variance = Fraction(stddev) ** 2
    exponent = (magnitude - variance / scale) ** 2 / (2 * variance)
    bits = 64
    while True:
        with decimal.localcontext(_context(bits)):
            exact = decimal.Decimal(exponent.numerator) / decimal.Decimal(exponent.denominator)
            chance = (-exact).exp()
            slack = (chance * (1 + exact) + chance) * decimal.Decimal(10) ** -(20 + bits // 4)
            unit = decimal.Decimal(2) ** bits
            if decimal.Decimal(word + 1) / unit <= chance - slack:
                return True
            if decimal.Decimal(word) / unit >= chance + slack:
                return False
        word, bits = _extend(word, bits, csprng)


def _context(bits: int) -> decimal.Context:
    """Decimals with far more digits than ``bits`` bits: ln and exp are correctly rounded there."""
    return decimal.Context(
        prec=60 + bits, rounding=decimal.ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999
    )


def _extend(word: int, bits: int, csprng: Csprng) -> tuple[int, int]:
    return (word << 64) | int.from_bytes(csprng.bytes(8), "big"), bits + 64
