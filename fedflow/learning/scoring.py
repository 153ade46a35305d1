"""What the sum of an evaluation means: its grid, the noise in it, the score that follows.

Shares of noise are sized so that the honest sites of the smallest allowed sum together add the
plan's: variance (noise_multiplier * GRID)^2 / (minimum - colluders) each. (Distributed discrete
Gaussian: Kairouz, Liu and Steinke, ICML 2021.) No torch: coordinators and auditors read scores.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse, Refusal
from fedflow.learning.metrics import METRICS
from fedflow.learning.plan import Plan
from fedflow.learning.summed_noise import SMALLEST_SHARE
from fedflow.wire.messages import Kind

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


def score_of(total: NDArray[np.int64], plan: Plan, sites: int) -> tuple[float, float]:
    """The plan's metric and its standard error from noise alone, from a sum over ``sites`` sites.

    ``total`` int64[n] with the n of ``plan.vector_length``. The error is first order (each
    coordinate's noise variance through the derivative of the score); it says nothing of sampling
    error. Where noise left nothing to divide by, the score is that of knowing nothing.
    """
    if total.shape != (plan.vector_length(Kind.EVALUATE, 0),) or sites < 1:
        raise Misuse(f"no score from a sum of shape {total.shape} over {sites} sites")
    stddev = noise_share_stddev(plan) * math.sqrt(sites)
    share, error = METRICS[plan.evaluation.metric].read(total.astype(np.float64), stddev)
    unit = plan.evaluation.error_bound or 1.0
    return share * unit, error * unit
