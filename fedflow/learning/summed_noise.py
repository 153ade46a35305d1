"""Discrete Gaussian noise in shares: what a site adds so that only the sum is private enough.

A site's values become integers on the public grid of the round, and each site adds discrete
Gaussian noise of standard deviation

    sigma_i = noise_multiplier * delta / sqrt(minimum - colluders)        (in grid steps)

A sum opens for no fewer than ``minimum`` sites, of which ``colluders`` may know and subtract their
own noise: at least ``minimum - colluders`` shares remain, with the variance the plan promises
(distributed discrete Gaussian: Kairouz, Liu and Steinke, ICML 2021). Here ``delta`` is how far one
unit can move the integers, in L2:

    delta = s * sensitivity * (1 + 2^-10) + sqrt(d)

``s`` steps per unit of value; each of d coordinates may round one step further; 2^-10 covers
floating-point error in clipping and in sums over batches of other shapes. Everything released is an
integer, modulo 2^bits, so the attacks on floating-point noise (Mironov, CCS 2012) do not apply.

With sigma_i of at least 8 steps a sum of shares is a discrete Gaussian of the summed variance up to
a factor within 1 +- 10 n exp(-64 pi^2) (Proposition 14 there), that is 1 +- 1e-270.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse, Refusal
from fedflow.learning.plan import Plan
from fedflow.learning.update_coding import UpdateCoding
from fedflow.privacy.noise import discrete_gaussian

#: Relative slack for floating-point error in what is said to be clipped.
CLIPPING_SLACK = 2.0**-10
#: Below this many steps a sum of discrete Gaussian shares is no longer as good as one.
SMALLEST_SHARE = 8.0
#: Rounding may raise the noise by no more than this; a coarser grid is refused.
MOST_INFLATION = 1.25
#: Room kept for noise beside the clamped value, in standard deviations: exceeded once in 5e18.
DEVIATIONS = 9.0
#: Adaptive clipping: what a site's bit is worth, as a fraction of the clipping norm.
BIT_WEIGHT = 0.25


def unit_sensitivity(plan: Plan, clipping_norm: float, reference_units: int) -> float:
    """How far one unit can move a site's values, in L2, before rounding.

    "summed": one clipped gradient (or what a method sums) over the plan's public divisor.
    "site": one clipped update and, with adaptive clipping, its bit.
    """
    if plan.privacy.mechanism == "summed":
        return clipping_norm / plan.divisor(reference_units)
    if plan.privacy.mechanism != "site":
        raise Misuse("with local noise a site's update needs none in shares")
    return clipping_norm * math.sqrt(1.0 + (BIT_WEIGHT**2 if _adaptive(plan) else 0.0))


def noise_share(plan: Plan, sensitivity: float) -> float:
    """A share's standard deviation in units of value, without what rounding adds."""
    honest = plan.cohort.minimum - plan.cohort.colluders
    return plan.privacy.noise_multiplier * sensitivity / math.sqrt(honest)


def inflation(coding: UpdateCoding, dimension: int, sensitivity: float) -> float:
    """How much more noise the grid costs: integer sensitivity over that of the real values."""
    return (1.0 + CLIPPING_SLACK) + math.sqrt(dimension) / (coding.values.scale * sensitivity)


def share_stddev(plan: Plan, coding: UpdateCoding, dimension: int, sensitivity: float) -> float:
    """Standard deviation, in grid steps, of the noise each site adds to each coordinate.

    ``dimension`` counts the coordinates that are noised. Refusals: ``too-few-bits`` when the grid
    is so coarse that rounding would dominate, ``noise-too-small`` under 8 steps, ``range-too-
    small`` when the noise alone would fill the range.
    """
    grown = inflation(coding, dimension, sensitivity)
    if grown > MOST_INFLATION:
        raise Refusal(
            "too-few-bits",
            f"rounding {dimension} coordinates to {coding.bits} bits would raise the noise by"
            f" {grown - 1:.0%}; use more secure_aggregation.bits or a smaller value_range",
        )
    stddev = noise_share(plan, sensitivity) * grown * coding.values.scale
    if stddev < SMALLEST_SHARE:
        raise Refusal(
            "noise-too-small",
            f"each site's share of noise is {stddev:.3g} grid steps, under {SMALLEST_SHARE:g}; use"
            " more secure_aggregation.bits or a smaller value_range",
        )
    if coding.values.limit - math.ceil(DEVIATIONS * stddev) < 1:
        raise Refusal(
            "range-too-small",
            f"each site's share of noise is {stddev * coding.values.resolution:.3g}, too much for"
            f" values within {coding.value_range:g}; raise secure_aggregation.value_range",
        )
    return stddev


def noisy_steps(
    values: NDArray[np.float64],
    plan: Plan,
    coding: UpdateCoding,
    sensitivity: float,
    csprng: Csprng,
) -> NDArray[np.int64]:
    """int64[d]: ``values`` float64[d] clamped, rounded to the round's grid, and noised.

    Clamping and rounding move no two inputs further apart than ``delta`` allows. The sum of the
    clamped integer and its noise may leave the ring's range with negligible probability; it is
    reduced modulo 2^bits later, which costs no privacy. Refusals as :func:`share_stddev`, and
    ``non-finite``: a value that is not finite must never have got this far.
    """
    if values.dtype != np.float64 or values.ndim != 1:
        raise Misuse(f"values are float64[d], not {values.dtype}{values.shape}")
    if not np.isfinite(values).all():
        raise Refusal("non-finite", "a value to aggregate is NaN or infinite")
    stddev = share_stddev(plan, coding, values.size, sensitivity)
    most = coding.values.limit - math.ceil(DEVIATIONS * stddev)
    with np.errstate(over="ignore"):
        steps = np.rint(np.clip(values * coding.values.scale, -most, most)).astype(np.int64)
    steps += discrete_gaussian(stddev, values.size, csprng)
    return steps


def clipped(values: NDArray[np.float64], norm: float) -> tuple[NDArray[np.float64], bool]:
    """``values`` scaled down to L2 ``norm`` if longer, and whether they were within it.

    Values that are not all finite count as none at all, within the norm: an error would tell that
    this one site's training failed.
    """
    if not np.isfinite(values).all():
        return np.zeros_like(values), True
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return values, True
    length = largest * float(np.linalg.norm(values / largest))
    return (values, True) if length <= norm else (values * (norm / length), False)


def with_bit(values: NDArray[np.float64], within: bool, norm: float) -> NDArray[np.float64]:
    """``values`` and one more coordinate: ``BIT_WEIGHT * norm`` when the update was within it."""
    return np.append(values, BIT_WEIGHT * norm * within)


def _adaptive(plan: Plan) -> bool:
    return plan.privacy.clipping_quantile is not None
