"""Scores the global model on held-out persons through a noised, summed histogram.

Every site counts its held-out persons by label and score bin on an integer grid. What is protected
as a whole carries the same total weight: with unit "person" each person, however many rows they
have, shared equally by their rows; with "record" each row; with "site" the whole site, shared
equally by its persons. Each site adds its share of discrete Gaussian noise; only the sum over sites
is ever opened, and AUC is computed from it. Shares are sized so that the honest sites of the
smallest allowed sum together add the plan's noise: variance (noise_multiplier * GRID)^2 / (minimum
- colluders) each. (Distributed discrete Gaussian: Kairouz, Liu and Steinke, ICML 2021.)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.learning.auc import exact_auc
from fedflow.learning.model_file import Arrays
from fedflow.learning.plan import Plan
from fedflow.learning.scoring import GRID, SITE_GRID, noise_share_stddev
from fedflow.learning.workload import PersonData, Persons, Workload, model_with, units_of
from fedflow.privacy.noise import discrete_gaussian


def score_histogram(
    workload: Workload, persons: Persons, arrays: Arrays, plan: Plan
) -> NDArray[np.int64]:
    """int64[2 * bins] in grid units: label 0's bins by ascending score, then label 1's.

    Not private by itself; see :func:`noisy_histogram`.
    """
    bins = plan.evaluation.bins
    low, high = workload.score_range
    persons = units_of(persons, plan.privacy.unit)
    share = (_probabilities(workload, persons, arrays) - low) / (high - low)
    at = np.clip(np.floor(share * bins), 0, bins - 1).astype(np.int64)
    labels = (persons.y > 0.5).astype(np.int64)
    weights = _row_weights(persons.mask, plan.privacy.unit)
    out = np.zeros(2 * bins, np.int64)
    np.add.at(out, (labels * bins + at)[persons.mask], weights[persons.mask])
    return out


def noisy_histogram(
    workload: Workload, data: PersonData, arrays: Arrays, plan: Plan, csprng: Csprng
) -> NDArray[np.int64]:
    """:func:`score_histogram` of the held-out persons plus this site's share of noise, int64."""
    histogram = score_histogram(workload, data.holdout, arrays, plan)
    return histogram + discrete_gaussian(noise_share_stddev(plan), histogram.size, csprng)


def exact_score(workload: Workload, persons: Persons, arrays: Arrays) -> float:
    """Exact AUC over all rows, every person weighing the same. Not private: baselines only."""
    mask = persons.mask
    weights = (mask / np.maximum(mask.sum(axis=1, keepdims=True), 1))[mask]
    scores = _probabilities(workload, persons, arrays)[mask]
    return exact_auc(scores, persons.y[mask].astype(np.float64), weights)


def _probabilities(workload: Workload, persons: Persons, arrays: Arrays) -> NDArray[np.float64]:
    """Predicted probability of label 1, float64[P, R]; 0 where the score is not a number."""
    model = model_with(workload, arrays).eval()
    with torch.no_grad():
        scores = model(torch.from_numpy(persons.x)).double()
    out: NDArray[np.float64] = torch.nan_to_num(torch.sigmoid(scores), nan=0.0).numpy()
    return out


def _row_weights(mask: NDArray[np.bool_], unit: str) -> NDArray[np.int64]:
    """int64[P, R]: what each row counts. A unit's rows sum to exactly its total weight."""
    units = np.full((len(mask), 1), GRID)
    if unit == "site" and len(mask):
        units[:] = SITE_GRID // len(mask)
        units[: SITE_GRID % len(mask)] += 1
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    rank = np.cumsum(mask, axis=1) - 1
    weights = units // counts + (rank < units % counts)
    return np.where(mask, weights, 0).astype(np.int64)
