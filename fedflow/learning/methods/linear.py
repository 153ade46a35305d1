"""Linear regression from one secure sum: X'X, X'y and y'y are all that it needs.

Sufficient statistics: Vu and Slavkovic, "Differential privacy for clinical trial data" (ICDMW 2009)
and Wang, "Revisiting differentially private linear regression" (AdaSSP, UAI 2018). The model file
holds the sums; the mean of several rounds has less noise, and one round with all the budget is as
good. Whoever reads the file solves for the coefficients, with a pull to zero that answers to the
noise, and may solve again with another: it costs nothing. Without noise and ridge they are those of
least squares.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedflow.learning.methods.base import (
    ROUNDS,
    SUMS,
    Averaged,
    Real,
    needs_features,
    needs_target,
    noise_stddev,
    one_target,
    row_weights,
    scores_of,
    to_unit,
)
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload

#: The constant beside features between -1 and 1. Half of their largest, as they are mostly smaller:
#: the norm that a unit is clipped to serves all of them.
INTERCEPT = 0.5
#: What X'y is multiplied by before all is clipped together. It has far fewer numbers than X'X, so
#: its noise is made smaller for very little (AdaSSP divides the budget to that end).
TARGET = 2.0
#: Eigenvalues below this share of the largest are taken as none.
_SMALLEST = 1e-9


class Coefficients(NamedTuple):
    """``target = intercept + weights @ x``, in the workload's units; weights float64[F].

    ``noise`` is the standard deviation of the noise in each sum, ``ridge`` the pull that was used,
    both in units of people.
    """

    intercept: float
    weights: Real
    noise: float
    ridge: float


class Linear(Averaged):
    """``strategy.name = "linear"``: d = p(p + 1)/2 + p + 1 with p = F + 1, the constant first.

    The upper triangle of X'X row by row, then 2 X'y, then y'y; features and target with their
    bounds at -1 and 1. Rows of a unit share its weight.
    """

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        needs_target(workload)
        p = needs_features(workload)[0] + 1
        return p * (p + 1) // 2 + p + 1

    def unit_values(self, workload: Workload, units: Persons, state: Arrays, plan: Plan) -> Real:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        _, low, high = needs_features(workload)
        y = one_target(units, *needs_target(workload))
        z, weights = _with_constant(to_unit(units.x, low, high)), row_weights(units)
        squares = np.einsum("pr,pri,prj->pij", weights, z, z, optimize=True)
        upper = np.triu_indices(z.shape[2])
        products = TARGET * np.einsum("pr,pri,pr->pi", weights, z, y, optimize=True)
        last = (weights * y * y).sum(axis=1, keepdims=True)
        return np.concatenate([squares[:, upper[0], upper[1]], products, last], axis=1)

    def judged(
        self, workload: Workload, persons: Persons, state: Arrays, plan: Plan
    ) -> tuple[Real, NDArray[np.float32]]:
        """Predictions within the target's bounds and targets, [P, R]; see :func:`scores_of`."""
        _, low, high = needs_features(workload)
        bounds = needs_target(workload)
        one_target(persons, *bounds)
        solution, _, _ = _solved(state, plan)
        said = _with_constant(to_unit(persons.x, low, high)) @ solution
        return scores_of(np.clip(said, -1.0, 1.0), *bounds, plan), persons.y


def coefficients(state: Arrays, workload: Workload, plan: Plan) -> Coefficients:
    """What the sums in a model file say, in the workload's own units."""
    _, low, high = needs_features(workload)
    least, most = needs_target(workload)
    solution, noise, ridge = _solved(state, plan)
    half, middle, factor = (high - low) / 2, (high + low) / 2, (most - least) / 2
    weights = solution[1:] * (factor / half)
    constant = (most + least) / 2 + factor * INTERCEPT * float(solution[0])
    return Coefficients(constant - middle * float(weights.sum()), weights, noise, ridge)


def _solved(state: Arrays, plan: Plan) -> tuple[Real, float, float]:
    """Coefficients float64[p] between bounds at -1 and 1, noise of a sum, ridge.

    The noise in X'X is a symmetric Gaussian matrix, whose largest eigenvalue is about
    ``2 stddev sqrt(p)``; half of that is added to ``method.ridge``, which keeps directions that the
    noise hides from growing at random. Negative eigenvalues are noise for certain, and go to zero.
    """
    sums = state[SUMS].astype(np.float64)
    p = int((math.isqrt(8 * sums.size + 1) - 3) // 2)  # sums.size = (p + 1)(p + 2) / 2
    square = np.zeros((p, p))
    upper = np.triu_indices(p)
    square[upper] = sums[: len(upper[0])]
    square = square + np.triu(square, 1).T
    rounds = max(float(state[ROUNDS][0]), 1.0)
    noise = noise_stddev(plan) / math.sqrt(rounds)
    ridge = (plan.method.ridge or 0.0) + noise * math.sqrt(p)
    values, vectors = np.linalg.eigh(square)
    values = np.maximum(values, 0.0)
    smallest = _SMALLEST * max(float(values.max(initial=0.0)), 1e-300)
    inverse = np.where(values + ridge > smallest, 1.0 / np.maximum(values + ridge, smallest), 0.0)
    products = sums[len(upper[0]) : len(upper[0]) + p] / TARGET
    return vectors @ (inverse * (vectors.T @ products)), noise, ridge


def _with_constant(z: Real) -> Real:
    return np.concatenate([np.full((*z.shape[:2], 1), INTERCEPT), z], axis=2)
