"""Histograms of every feature in one secure sum; quantiles and shares of missing values follow.

A unit adds, for each feature, its rows' shares of one count to the bins of equal width between the
workload's public bounds; a value outside counts at the end it is nearer to, and one that is missing
(not a number) in a bin of its own. So a unit of F features has norm ``sqrt(F)`` at most. Plans of
several rounds average the noise: round k's histogram has the mean of k sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse, Refusal
from fedflow.learning.methods.base import (
    ROUNDS,
    SUMS,
    Memory,
    Real,
    needs_features,
    row_weights,
    running_mean,
)
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload


class Histogram:
    """``strategy.name = "histogram"``: d = F * (bins + 1), feature by feature, missing last."""

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        if getattr(workload, "columns", None) is not None:
            raise Refusal(
                "workload-unsuitable",
                f"the columns of workload {workload.name!r} have bounds and categories of their"
                ' own: strategy.name "moments" describes them',
            )
        return needs_features(workload)[0] * (_bins(plan) + 1)

    def memory_sizes(self, plan: Plan, dimension: int) -> dict[str, int]:
        """How many sums the mean is over."""
        return {ROUNDS: 1}

    def first_sums(self, workload: Workload, plan: Plan) -> NDArray[np.float32]:
        """Nothing counted."""
        return np.zeros(self.dimension(workload, plan), np.float32)

    def unit_values(self, workload: Workload, units: Persons, state: Arrays, plan: Plan) -> Real:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        features, low, high = needs_features(workload)
        bins, weights = _bins(plan), row_weights(units)
        x = units.x.astype(np.float64)
        at = np.floor((np.clip(x, low, high) - low) / (high - low) * bins)
        at = np.where(np.isnan(x), bins, np.minimum(at, bins - 1)).astype(np.int64)
        out = np.zeros((len(units), features, bins + 1))
        person, row, feature = np.indices(x.shape)
        np.add.at(out, (person, feature, at), weights[person, row])
        return out.reshape(len(units), -1)

    def step(self, sums: NDArray[np.float32], memory: Memory, total: Real, plan: Plan) -> None:
        """The running mean of all sums so far."""
        running_mean(sums, memory, total)

    def judged(
        self, workload: Workload, persons: Persons, state: Arrays, plan: Plan
    ) -> tuple[Real, NDArray[np.float32]]:
        """Misuse: a histogram predicts nothing."""
        raise Misuse("a histogram has no score")


def counts(state: Arrays, workload: Workload, plan: Plan) -> Real:
    """The noised histograms, float64[F, bins + 1], in units; the last bin holds missing values."""
    return state[SUMS].astype(np.float64).reshape(needs_features(workload)[0], _bins(plan) + 1)


def quantile(histogram: Real, share: float, low: float, high: float) -> float:
    """Where a ``share`` of one feature's present values lies, from its noised counts float64[bins].

    Linear inside a bin. Negative counts, which are noise, count as none; the middle of the bounds
    where nothing is left.
    """
    kept = np.maximum(histogram, 0.0)
    whole = float(kept.sum())
    if not 0 <= share <= 1:
        raise Misuse("a quantile is that of a share from 0 to 1")
    if whole <= 0:
        return (low + high) / 2
    below = np.concatenate([[0.0], np.cumsum(kept)]) / whole
    edges = np.linspace(low, high, len(kept) + 1)
    at = int(np.clip(np.searchsorted(below, share, side="right") - 1, 0, len(kept) - 1))
    inside = (share - below[at]) / (below[at + 1] - below[at]) if below[at + 1] > below[at] else 0.0
    return float(edges[at] + inside * (edges[at + 1] - edges[at]))


def _bins(plan: Plan) -> int:
    if plan.method.bins is None:
        raise Misuse("a plan of histograms has bins")
    return plan.method.bins
