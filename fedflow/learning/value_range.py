"""The range that updates are clamped to, found from public numbers alone.

A fixed range is a guess: too wide wastes bits, too narrow clips updates. With ``value_range =
"auto"`` the first round takes a bound on what one site can send at all, and every later round
follows the largest coordinate of the last opened mean (as in Bonawitz et al., "Federated learning
with autotuned communication-efficient secure aggregation", 2019). An opened sum is public and
already paid for, so what is computed from it costs no privacy. Ranges are powers of two, from
integers and correctly rounded operations only: every party finds the same one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse
from fedflow.learning.plan import Plan
from fedflow.learning.summed_noise import (
    DEVIATIONS,
    MOST_INFLATION,
    noise_share,
    unit_sensitivity,
)
from fedflow.learning.update_coding import SPAN
from fedflow.secagg.quantise import sign_extend

#: A site may have this many times the workload's reference number of persons before it is clipped.
LARGEST_SITE = 4
#: The floor of a range, as a fraction of the first one.
_SMALLEST_FRACTION = 2.0**-24
#: Ranges outside these help no float32 update.
_WIDEST, _NARROWEST = 2.0**127, 2.0**-96
#: The largest of fewer coordinates than these says very little, or a little less, of their spread.
_FEW, _MANY = 32, 4096


def update_noise_stddev(plan: Plan, reference_persons: int) -> float:
    """Standard deviation of the privacy noise in one coordinate of one site's update.

    With mechanisms "summed" and "site" it is the share of :mod:`fedflow.learning.summed_noise` at
    the plan's clipping norm, with all that rounding may add. With "local" noise,
    :mod:`fedflow.learning.dpsgd` adds N(0, (noise_multiplier·clipping_norm)²) to each clipped sum
    and divides by ``sample_rate·reference_persons``; the optimiser multiplies by the learning rate
    and, with momentum m, applies the gradient of a step k times from the end ``1 + m + .. +
    m^(k-1)`` times in all. Noise of different steps is independent, so those factors' squares add.
    Noise only: that later gradients answer to earlier noise is not counted.
    """
    if plan.privacy.mechanism != "local":
        return _largest_share(plan, plan.privacy.clipping_norm, reference_persons)
    _, squares, _ = _momentum_sums(plan)
    return _unit(plan, reference_persons) * plan.privacy.noise_multiplier * math.sqrt(squares)


def initial_range(plan: Plan, reference_persons: int) -> float:
    """The first round's range: the plan's number or, with "auto", a bound from public numbers.

    A coordinate of one site's update is at most the learning rate over
    ``sample_rate·reference_persons`` times the sum over steps of (momentum factor, see
    :func:`update_noise_stddev`) x (``clipping_norm`` per sampled person + noise). The sampled
    persons of all steps, with their factors, stay below their mean plus Bernstein's bound at 9
    standard deviations for a site of at most 4 x ``reference_persons``; the noise below 9 of its
    own. Larger sites are clipped, never wrapped. Rounded up to a power of two.
    """
    fixed = plan.secure_aggregation.value_range
    if fixed != "auto":
        return float(fixed)
    if plan.privacy.mechanism == "site":
        return _site_range(plan, plan.privacy.clipping_norm)
    unit, rate = _unit(plan, reference_persons), plan.privacy.sample_rate
    total, squares, largest = _momentum_sums(plan)
    persons = float(LARGEST_SITE * reference_persons)
    deviation = DEVIATIONS * math.sqrt(persons * rate * (1.0 - rate) * squares)
    sampled = persons * rate * total + deviation + DEVIATIONS**2 / 6.0 * largest
    signal = unit * min(sampled, persons * total)
    return _power_of_two(signal + DEVIATIONS * update_noise_stddev(plan, reference_persons))


def next_range(
    plan: Plan,
    value_range: float,
    total: NDArray[np.uint32],
    count: int,
    *,
    sites: int,
    initial: float,
    clipping_norm: float | None = None,
) -> float:
    """The range after a round with ``value_range`` whose opened sum is ``total`` uint32[d + 1].

    A fixed range stays, and so does that of a method, whose later sums are no larger. With "auto":
    the power of two at or above ``2·sqrt(count)`` times the largest magnitude in the mean of
    ``count`` sites, where ``sqrt(count)`` undoes what averaging does to independent noise. (With
    few coordinates it is ``4·sqrt(count)``; with very few the range never shrinks.) At least a
    quarter of the last range, so one quiet round cannot clip the next; at most ``initial``, the
    first round's range, where nothing is clipped. A sum at its limit makes the range grow. It
    cannot see large updates that cancel between sites.

    With noise in shares a site needs room for 9 deviations of its own beside its values. "summed":
    4 times as much as above; the largest of many noisy coordinates is at least 1.8 deviations of a
    share over ``sqrt(count)``, so that is 14 at the least. "site": the range follows
    ``clipping_norm``, that of the next round, and nothing else.

    ``sites`` are those in the roster. Violation as
    :meth:`~fedflow.learning.update_coding.UpdateCoding.weight_steps`.
    """
    if plan.secure_aggregation.value_range == "auto" and not plan.is_method:
        if plan.privacy.mechanism == "site":
            return _site_range(plan, clipping_norm or plan.privacy.clipping_norm)
        d = total.size - 1
        if d < 1:
            raise Misuse("the sum of a training round has an update and a weight")
        coding = plan.coding(sites, value_range)
        weight = coding.weight_steps(total, count, plan.weighting)
        most = _largest(total[:d], coding.bits) / weight * value_range
        factor = (2.0 if d >= _MANY else 4.0) * (4.0 if plan.privacy.mechanism == "summed" else 1.0)
        wanted = _power_of_two(factor * math.sqrt(count) * most)
        least = value_range * (1.0 if d < _FEW else 0.25)
        return min(max(wanted, least, initial * _SMALLEST_FRACTION), initial)
    return value_range


def _site_range(plan: Plan, clipping_norm: float) -> float:
    """Room for one coordinate of a clipped update and a site's noise."""
    return _power_of_two(clipping_norm + DEVIATIONS * _largest_share(plan, clipping_norm, 1))


def _largest_share(plan: Plan, clipping_norm: float, reference_units: int) -> float:
    """A site's share of noise with the most that rounding may add to it."""
    sensitivity = unit_sensitivity(plan, clipping_norm, reference_units)
    return noise_share(plan, sensitivity) * MOST_INFLATION


def _unit(plan: Plan, reference_persons: int) -> float:
    """What one person at the clipping norm moves a coordinate by, in one step at most."""
    if reference_persons < 1:
        raise Misuse("a workload's reference number of persons starts at 1")
    step = plan.training.learning_rate * plan.privacy.clipping_norm
    return step / plan.divisor(reference_persons)


def _momentum_sums(plan: Plan) -> tuple[float, float, float]:
    """Sum, sum of squares and largest of the steps' momentum factors; 1 each without momentum."""
    total = squares = factor = 0.0
    for _ in range(plan.local_steps):
        factor = 1.0 + plan.training.momentum * factor
        total += factor
        squares += factor * factor
    return total, squares, factor


def _largest(words: NDArray[np.uint32], bits: int) -> int:
    """The largest magnitude, span by span: exact, and in constant memory."""
    out = 0
    for at in range(0, words.size, SPAN):
        signed = sign_extend(words[at : at + SPAN], bits)
        out = max(out, int(signed.max()), -int(signed.min()))
    return out


def _power_of_two(value: float) -> float:
    """The smallest power of two at or above ``value``, within what fixed point can hold."""
    mantissa, exponent = math.frexp(min(max(value, _NARROWEST), _WIDEST))
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)
