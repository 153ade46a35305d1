"""What a summed score histogram means: its grid, the noise in it, the AUC that follows.

Shares of noise are sized so that the honest sites of the smallest allowed sum together add the
plan's: variance (noise_multiplier * GRID)^2 / (minimum - colluders) each. (Distributed discrete
Gaussian: Kairouz, Liu and Steinke, ICML 2021.) No torch: coordinators and auditors read scores.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse, Refusal
from fedflow.learning.auc import binned_auc
from fedflow.learning.plan import Plan
from fedflow.learning.summed_noise import SMALLEST_SHARE

#: Total weight of one unit, in grid steps: divisible by 1 to 6 rows. Adding or removing a unit
#: changes the histogram by exactly this much in L1, hence at most this much in L2.
GRID = 960
#: The same of a whole site: enough for each of tens of thousands of persons to count.
SITE_GRID = 64 * GRID


def sensitivity(plan: Plan) -> float:
    """How far one unit can move a histogram, in grid steps."""
    return float(SITE_GRID if plan.privacy.unit == "site" else GRID)


def noise_share_stddev(plan: Plan) -> float:
    """Standard deviation, in grid units, of the noise each site adds per bin.

    Refusal when it is too small for a sum of discrete Gaussians to behave like one.
    """
    honest = plan.cohort.minimum - plan.cohort.colluders
    stddev = plan.evaluation.noise_multiplier * sensitivity(plan) / math.sqrt(honest)
    if stddev < SMALLEST_SHARE:
        raise Refusal(
            "noise-too-small",
            f"evaluation.noise_multiplier {plan.evaluation.noise_multiplier:g} gives each site a"
            f" share of {stddev:.3g} grid units, under {SMALLEST_SHARE:g}",
        )
    return stddev


def auc_from_histogram(total: NDArray[np.int64], plan: Plan, sites: int) -> tuple[float, float]:
    """AUC and its standard error from noise alone, from a sum over ``sites`` sites.

    ``total`` int64[2 * bins]. The error is first order (each bin's noise variance through the
    derivative of AUC); it says nothing of sampling error. (0.5, 0.5) when noise left no positive
    weight in a class.
    """
    bins = plan.evaluation.bins
    if total.shape != (2 * bins,) or sites < 1:
        raise Misuse(f"expected a sum of {2 * bins} bins over at least one site")
    negative, positive = total[:bins].astype(np.float64), total[bins:].astype(np.float64)
    if negative.sum() <= 0 or positive.sum() <= 0:
        return 0.5, 0.5
    auc, by_positive, by_negative = binned_auc(positive, negative)
    variance = noise_share_stddev(plan) ** 2 * sites
    error = math.sqrt(variance * float(by_positive @ by_positive + by_negative @ by_negative))
    return min(max(auc, 0.0), 1.0), min(error, 0.5)
