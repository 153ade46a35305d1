"""How a model is judged: by one number that a noised, secure sum of counts on held-out units gives.

==============  ===========================================  ==================  ================
metric          what a unit's rows put in the sum            coordinates         better
==============  ===========================================  ==================  ================
``auc``         weight by label and score bin (labels 0, 1)  ``2 * bins``        higher
``accuracy``    weight of wrong, then of right predictions   2                   higher
``mse``         weight times squared error over its bound,   2                   lower
                then the rest of the weight
==============  ===========================================  ==================  ================

A unit always carries the same total weight, so for every metric it moves the sum by that much in
L1. No torch: coordinators and auditors read scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedflow.learning.auc import binned_auc

MetricName = Literal["auc", "accuracy", "mse"]
_Sum = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A metric's name for people, its direction, and how it is read from a sum.

    ``read`` takes the noised sum float64[n] and the standard deviation of the noise in each
    coordinate; it returns a share (0 to 1 but for noise) and its standard error, to first order.
    """

    label: str
    higher_is_better: bool
    read: Callable[[_Sum, float], tuple[float, float]]

    def better(self, one: float, other: float) -> bool:
        """Whether score ``one`` is better than ``other``."""
        return one > other if self.higher_is_better else one < other


def _auc(total: _Sum, stddev: float) -> tuple[float, float]:
    negative, positive = np.split(total, 2)
    if negative.sum() <= 0 or positive.sum() <= 0:
        return 0.5, 0.5
    auc, by_positive, by_negative = binned_auc(positive, negative)
    error = stddev * math.sqrt(float(by_positive @ by_positive + by_negative @ by_negative))
    return min(max(auc, 0.0), 1.0), min(error, 0.5)


def _share(part: float, rest: float, stddev: float) -> tuple[float, float]:
    whole = part + rest
    error = stddev * math.hypot(part, rest) / whole**2
    return min(max(part / whole, 0.0), 1.0), min(error, 1.0)


def _accuracy(total: _Sum, stddev: float) -> tuple[float, float]:
    wrong, right = map(float, total)
    return _share(right, wrong, stddev) if wrong + right > 0 else (0.0, 1.0)


def _mse(total: _Sum, stddev: float) -> tuple[float, float]:
    lost, kept = map(float, total)
    return _share(lost, kept, stddev) if lost + kept > 0 else (1.0, 1.0)


def verdict(
    metric: str,
    score: float,
    stderr: float | None,
    personalised: float | None = None,
    personalised_stderr: float | None = None,
) -> str:
    """A score as a person reads it: ``AUC 0.701 ± 0.012, personalised 0.723 ± 0.012``."""
    said = f"{METRICS[metric].label} {score:.3f} ± {stderr or 0.0:.3f}"
    if personalised is None:
        return said
    return f"{said}, personalised {personalised:.3f} ± {personalised_stderr or 0.0:.3f}"


METRICS: dict[str, Metric] = {
    "auc": Metric("AUC", True, _auc),
    "accuracy": Metric("accuracy", True, _accuracy),
    "mse": Metric("mean squared error", False, _mse),
}
