"""Weighted area under the ROC curve, exact and from a histogram. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def exact_auc(scores: Floats, labels: Floats, weights: Floats) -> float:
    """P(score of a positive > score of a negative), ties one half; rows count by weight.

    All [N]; labels 0 or 1. 0.5 when one class has no weight.
    """
    _, at = np.unique(scores, return_inverse=True)
    positive = np.bincount(at, weights=weights * (labels > 0.5)).astype(np.float64)
    negative = np.bincount(at, weights=weights * (labels <= 0.5)).astype(np.float64)
    return binned_auc(positive, negative)[0]


def binned_auc(positive: Floats, negative: Floats) -> tuple[float, Floats, Floats]:
    """AUC of per-bin weights (bins in ascending score), and its derivatives by each bin's weight.

    Returns (auc, d auc / d positive[B], d auc / d negative[B]). With p, n the class totals:
    auc = sum_i positive_i (N_<i + negative_i / 2) / (p n). (0.5, zeros) unless p, n > 0.
    """
    p, n = float(positive.sum()), float(negative.sum())
    if p <= 0 or n <= 0:
        zeros = np.zeros(len(positive))
        return 0.5, zeros, zeros
    below = (np.cumsum(negative) - negative / 2) / n
    above = (p - np.cumsum(positive) + positive / 2) / p
    auc = float(positive @ below) / p
    return auc, (below - auc) / p, (above - auc) / n
