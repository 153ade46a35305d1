"""Histograms of every feature in one secure sum; quantiles and shares of missing values follow.

A unit adds, for each feature, its rows' shares of one count to the bins of equal width between the
workload's public bounds; a value outside counts at the end it is nearer to, and one that is missing
(not a number) in a bin of its own. Where the workload says how many ``classes`` its target has, a
last histogram counts them. So a unit of F features has norm ``sqrt(F)`` at most, or
``sqrt(F + 1)`` with classes. Plans of several rounds average the noise: round k's histogram has the
mean of k sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedflow.errors import Misuse, Refusal
from fedflow.learning.methods.base import (
    SUMS,
    Describing,
    Real,
    needs_features,
    row_weights,
    size_of,
)
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload

#: No class weighs more than this many times the mean class, nor less than one part in as many.
MOST_WEIGHT = 10.0


class Histogram(Describing):
    """``strategy.name = "histogram"``: feature by feature, missing last; then the classes.

    d = F * (bins + 1) + classes.
    """

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        if getattr(workload, "columns", None) is not None:
            raise Refusal(
                "workload-unsuitable",
                f"the columns of workload {workload.name!r} have bounds and categories of their"
                ' own: strategy.name "moments" describes them',
            )
        return needs_features(workload)[0] * (size_of(plan, "bins") + 1) + _classes(workload)

    def unit_values(self, workload: Workload, units: Persons, state: Arrays, plan: Plan) -> Real:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        features, low, high = needs_features(workload)
        bins, weights = size_of(plan, "bins"), row_weights(units)
        x = units.x.astype(np.float64)
        at = np.floor((np.clip(x, low, high) - low) / (high - low) * bins)
        at = np.where(np.isnan(x), bins, np.minimum(at, bins - 1)).astype(np.int64)
        out = np.zeros((len(units), features, bins + 1))
        person, row, feature = np.indices(x.shape)
        np.add.at(out, (person, feature, at), weights[person, row])
        return np.concatenate([out.reshape(len(units), -1), _labels(workload, units)], axis=1)


def counts(state: Arrays, workload: Workload, plan: Plan) -> Real:
    """The noised histograms, float64[F, bins + 1], in units; the last bin holds missing values."""
    features, width = needs_features(workload)[0], size_of(plan, "bins") + 1
    return state[SUMS][: features * width].astype(np.float64).reshape(features, width)


def class_counts(state: Arrays, workload: Workload, plan: Plan) -> Real:
    """The noised number of units of each class, float64[classes]; empty without classes."""
    features = needs_features(workload)[0]
    return state[SUMS][features * (size_of(plan, "bins") + 1) :].astype(np.float64)


def class_weights(state: Arrays, workload: Workload, plan: Plan) -> tuple[float, ...]:
    """What to multiply each class's loss by so that all classes matter alike: mean 1.

    Inverse noised counts, within a factor of ``MOST_WEIGHT`` around the mean class before they are
    scaled to mean 1; all 1 when the noise has left no count. A function of what is released
    already, so it costs nothing. Refusal for a workload without classes.
    """
    found = np.maximum(class_counts(state, workload, plan), 0.0)
    if not len(found):
        raise Refusal(
            "workload-unsuitable",
            f"workload {workload.name!r} does not say how many classes its target has (attribute"
            " `classes`)",
        )
    mean = float(found.mean())
    if mean <= 0:
        return (1.0,) * len(found)
    raw = 1.0 / np.clip(found / mean, 1.0 / MOST_WEIGHT, MOST_WEIGHT)
    return tuple(float(weight) for weight in raw / raw.mean())


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


def _labels(workload: Workload, units: Persons) -> Real:
    """float64[P, classes]: a row's share goes to its target's class, to none beyond them."""
    out, weights = np.zeros((len(units), _classes(workload))), row_weights(units)
    if out.size:
        y = np.rint(units.y.astype(np.float64).reshape(*units.mask.shape, -1))
        valid = (y >= 0) & (y < out.shape[1])  # false also for what is not a number
        shares = np.where(valid, weights[:, :, None] / y.shape[2], 0.0)
        np.add.at(out, (np.indices(y.shape)[0], np.where(valid, y, 0.0).astype(np.int64)), shares)
    return out


def _classes(workload: Workload) -> int:
    return int(getattr(workload, "classes", 0) or 0)
