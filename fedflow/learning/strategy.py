"""The server's step: from the sum of what sites sent to the next global model.

Everything that enters is public once the sum is opened, so every party can repeat the step. It uses
only element-wise operations whose result IEEE 754 fixes (sums, products, quotients and square
roots), in one order, so that the same inputs give the same bits everywhere.

The mean over sites is the direction, whether it is of updates (FedAvg: McMahan et al., AISTATS
2017) or of clipped gradients (FedSGD); the optimisers are those of Reddi et al., "Adaptive
federated optimization" (ICLR 2021), Algorithm 2: SGD, with momentum or without, Adam (FedAdam, here
with bias correction), Yogi (FedYogi) and Adagrad (FedAdagrad, without first moment).

SCAFFOLD (Karimireddy et al., ICML 2020) keeps a control variate c, the mean of the sites' c_i. With
its option II a site that took K steps of size eta to the change u has c_i + dc_i with
``dc_i = -c - u / (K eta)``, so what is to be summed of the control variates follows from the sum of
the updates: it needs no coordinates of its own, and no noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse, Violation
from fedflow.learning.groups import median
from fedflow.learning.methods import Method, method_of
from fedflow.learning.plan import Plan
from fedflow.learning.server_state import (
    CLIPPING_NORM,
    CONTROL,
    GROUP_MEANS,
    MOMENTUM,
    ROUND,
    SECOND_MOMENT,
    STEPS,
    memory_views,
    rounds_done,
)
from fedflow.learning.sparse import sent_places, spread
from fedflow.learning.summed_noise import BIT_WEIGHT
from fedflow.learning.update_coding import SPAN

BETA1, BETA2 = 0.9, 0.99
#: How fast an adaptive clipping norm moves towards its quantile.
CLIPPING_RATE = 0.2

_Real = NDArray[np.float64]
_Memory = dict[str, NDArray[np.float32]]


def next_model(
    vector: NDArray[np.float32],
    total: NDArray[np.uint32],
    count: int,
    plan: Plan,
    value_range: float,
    *,
    sites: int,
    dimension: int | None = None,
    span: int = SPAN,
) -> NDArray[np.float32]:
    """The next global model with the optimiser's memory, float32[D], from the last and the sum.

    ``vector`` float32[D] (see :mod:`fedflow.learning.server_state`; D = d without memory),
    ``total`` uint32[d + 1], or d + 2 with adaptive clipping, the sum over ``count`` of the
    ``sites`` in the roster, ``value_range`` that of the round. ``dimension`` is d where the sum is
    of a part of it (``secure_aggregation.density``). Works in spans, so memory beyond
    input and output does not grow with d; the result does not depend on ``span``. Misuse for other
    shapes and types; Violation ``wrong-weights``, ``sum-out-of-range`` or ``not-finite-model``.
    """
    if vector.dtype != np.float32 or vector.ndim != 1 or span < 1:
        raise Misuse(f"the model is float32[d], not {vector.dtype}{vector.shape}")
    adaptive = plan.privacy.clipping_quantile is not None
    sent = total.size - (2 if adaptive else 1)
    if total.dtype != np.uint32 or total.ndim != 1 or sent < 0:
        raise Misuse(f"the sum is one-dimensional uint32, not {total.dtype}{total.shape}")
    d = sent if dimension is None else dimension
    if plan.sent(d) != sent:
        raise Misuse(f"a sum of {sent} coordinates is not that of a model of {d}")
    coding = plan.coding(sites, value_range)
    out = vector.copy()
    memory = memory_views(out, plan, d)
    steps = coding.weight_steps(total, count, plan.weighting)
    weight = np.float64(steps / coding.weights.limit)
    method = method_of(plan)
    if method is not None:
        opened = coding.decode_span(total, steps, 0, d, count) / plan.privacy.sample_rate
        _method_step(method, out[:d], memory, opened, plan)
        return out
    if CLIPPING_NORM in memory:
        bit = coding.decode_span(total, steps, sent, sent + 1, count)[0] / weight
        memory[CLIPPING_NORM][0] = _next_norm(plan, float(memory[CLIPPING_NORM][0]), float(bit))

    def opened_mean(start: int, stop: int) -> _Real:
        return coding.decode_span(total, steps, start, stop, count) / weight

    mean_of, places = opened_mean, sent_places(plan, d, rounds_done(memory))
    if GROUP_MEANS in memory:
        turn, means = rounds_done(memory) % plan.cycle, memory[GROUP_MEANS].reshape(-1, sent)
        for at in range(0, sent, span):
            means[turn, at : at + span] = opened_mean(at, min(at + span, sent))
        _check_finite(means)
        if turn < plan.cycle - 1:  # the model stays until all groups have spoken
            memory[ROUND][0] += 1
            return out

        def mean_of(start: int, stop: int) -> _Real:
            return median(means[:, start:stop].astype(np.float64))

    _count_step(memory)
    for at in range(0, d, span):
        mean = _part(mean_of, places, at, min(at + span, d))
        _step(out[:d], memory, plan, mean, at)
        _move_control(memory, plan, mean, at, count / sites)
    if ROUND in memory:
        memory[ROUND][0] += 1
    if GROUP_MEANS in memory:
        memory[GROUP_MEANS][:] = 0.0
    return out


def _part(
    mean_of: Callable[[int, int], _Real], places: NDArray[np.int64] | None, start: int, stop: int
) -> _Real:
    """The mean of coordinates ``start`` to ``stop``, those that were not sent being zero."""
    if places is None:
        return mean_of(start, stop)
    first, last = np.searchsorted(places, (start, stop))
    return spread(mean_of(int(first), int(last)), places[first:last] - start, stop - start)


def step_along(vector: NDArray[np.float32], mean: _Real, plan: Plan) -> NDArray[np.float32]:
    """The next state, float32[D], for a mean over all sites of exactly ``mean`` float64[d].

    Of a method, ``mean`` is the total over all sites.

    What :func:`next_model` does once it has decoded the sum; for comparisons without sums. Groups
    and sparse updates make no difference here: the mean is that of all sites and coordinates.
    """
    out = vector.copy()
    memory = memory_views(out, plan, mean.size)
    method = method_of(plan)
    if method is not None:
        _method_step(method, out[: mean.size], memory, mean, plan)
        return out
    _count_step(memory)
    _step(out[: mean.size], memory, plan, mean, 0)
    _move_control(memory, plan, mean, 0, 1.0)
    return out


def _method_step(
    method: Method, sums: NDArray[np.float32], memory: _Memory, total: _Real, plan: Plan
) -> None:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        method.step(sums, memory, total, plan)
    _check_finite(sums, *memory.values())


def _count_step(memory: _Memory) -> None:
    if STEPS in memory:
        memory[STEPS][0] += 1


def _step(model: NDArray[np.float32], memory: _Memory, plan: Plan, mean: _Real, at: int) -> None:
    """Move the model's coordinates from ``at`` on along ``mean``, in place, memory included."""
    end = at + mean.size
    part = {name: memory[name][at:end] for name in (MOMENTUM, SECOND_MOMENT) if name in memory}
    with np.errstate(over="ignore", invalid="ignore"):
        direction = _direction(mean, plan, part, memory)
        model[at:end] = _moved(model[at:end], direction, plan.strategy.server_learning_rate)
    _check_finite(*part.values())


def _move_control(memory: _Memory, plan: Plan, mean: _Real, at: int, share: float) -> None:
    """SCAFFOLD's c from ``at`` on, in place; ``share`` is that of the sites that took part."""
    if CONTROL not in memory:
        return
    control = memory[CONTROL][at : at + mean.size]
    path = np.float64(plan.local_steps * plan.training.learning_rate)
    with np.errstate(over="ignore", invalid="ignore"):
        before = control.astype(np.float64)
        control[:] = before - np.float64(share) * (before + mean / path)
    _check_finite(control)


def _check_finite(*memory: NDArray[np.float32]) -> None:
    if not all(np.isfinite(values).all() for values in memory):
        raise Violation("not-finite-model", "the next state is not finite")


def _moved(vector: NDArray[np.float32], direction: _Real, rate: float) -> NDArray[np.float32]:
    out = (vector.astype(np.float64) + np.float64(rate) * direction).astype(np.float32)
    if not np.isfinite(out).all():
        raise Violation("not-finite-model", "the next model is not finite")
    return out


def _direction(mean: _Real, plan: Plan, part: _Memory, memory: _Memory) -> _Real:
    """What the optimiser steps along; ``part`` are this span's views of the memory, updated."""
    kind = plan.strategy.server_optimizer
    if kind == "sgd":
        if MOMENTUM not in part:
            return mean
        moving = plan.strategy.server_momentum * part[MOMENTUM].astype(np.float64) + mean
        part[MOMENTUM][:] = moving
        return np.asarray(moving)
    first, second = mean, _second_moment(kind, part[SECOND_MOMENT].astype(np.float64), mean)
    part[SECOND_MOMENT][:] = second
    if MOMENTUM in part:
        first = BETA1 * part[MOMENTUM].astype(np.float64) + (1.0 - BETA1) * mean
        part[MOMENTUM][:] = first
    if kind == "adam":
        taken = int(memory[STEPS][0])
        first = first / (1.0 - _power(BETA1, taken))
        second = second / (1.0 - _power(BETA2, taken))
    return np.asarray(first / (np.sqrt(second) + plan.strategy.server_adaptivity))


def _second_moment(kind: str, second: _Real, mean: _Real) -> _Real:
    """Algorithm 2 of Reddi et al., lines 10 to 12."""
    squared = mean * mean
    if kind == "adagrad":
        return second + squared
    if kind == "yogi":
        return second - (1.0 - BETA2) * squared * np.sign(second - squared)
    return BETA2 * second + (1.0 - BETA2) * squared


def _power(base: float, times: int) -> float:
    """By multiplication: a library's power function may differ in the last bit."""
    out = 1.0
    for _ in range(times):
        out *= base
    return out


def _next_norm(plan: Plan, norm: float, bit: float) -> float:
    """The clipping norm moved towards the quantile that the plan asks for.

    Andrew et al., "Differentially private learning with adaptive clipping" (NeurIPS 2021), with
    the first order of their exponential step, whose bits do not depend on a maths library. ``bit``
    is the mean over sites. The norm stays within a factor of 1,000 of the plan's.
    """
    quantile, start = plan.privacy.clipping_quantile or 0.5, plan.privacy.clipping_norm
    share = min(max(bit / (BIT_WEIGHT * norm), 0.0), 1.0)
    moved = norm * (1.0 - CLIPPING_RATE * (share - quantile))
    return min(max(moved, start / 1000.0), start * 1000.0)
