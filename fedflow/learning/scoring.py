"""What the sum of an evaluation means: its grid, the noise in it, the score that follows.

Shares of noise are sized so that the honest sites of the smallest allowed sum together add the
plan's: variance (noise_multiplier * sensitivity)^2 / (minimum - colluders) each. (Distributed
discrete Gaussian: Kairouz, Liu and Steinke, ICML 2021.) So an evaluation costs the plan's event
whatever is counted in it; what more it counts makes all of it noisier:

====================  ======================================================  ====================
counted               what one unit moves, in L2                              sensitivity squared
====================  ======================================================  ====================
the global model      its weight W                                            W²
the sites' own        W again, wherever that model puts it                    + W²
sites by score        a site of weight W/√2 leaves one bin for another        + W²
====================  ======================================================  ====================

No torch: coordinators and auditors read scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Scores:
    """What an evaluation says, each with the standard error from noise alone.

    ``personalised`` is the score of the sites' own models, ``fairness`` the number of sites in each
    bin between the scores ``between``; None and empty where the plan has none.
    """

    score: float
    stderr: float
    personalised: float | None = None
    personalised_stderr: float | None = None
    fairness: tuple[float, ...] = ()
    fairness_stderr: float = 0.0


def unit_weight(plan: Plan) -> int:
    """Total weight of one unit, in grid steps."""
    return SITE_GRID if plan.privacy.unit == "site" else GRID


def sensitivity(plan: Plan) -> float:
    """How far one unit can move the whole vector of an evaluation, in grid steps (L2)."""
    parts = 1 + plan.evaluation.personalised + (plan.evaluation.fairness_bins is not None)
    return unit_weight(plan) * math.sqrt(parts)


def fairness_weight(plan: Plan) -> int:
    """What a site counts in its bin, in grid steps.

    A person may move it from one bin to another: that is the square root of 2 of it in L2. A whole
    site that is replaced by nothing only leaves its bin.
    """
    weight = unit_weight(plan)
    return weight if plan.privacy.unit == "site" else math.isqrt(weight**2 // 2)


def fairness_between(plan: Plan) -> tuple[float, float]:
    """The scores between which the bins of sites are; one outside counts in the nearest."""
    if plan.evaluation.fairness_between is not None:
        return plan.evaluation.fairness_between
    low = 0.5 if plan.evaluation.metric == "auc" else 0.0
    return low, plan.evaluation.error_bound or 1.0


def fairness_noise(plan: Plan, sites: int) -> float:
    """Standard deviation of the noise in a bin of a sum over ``sites`` sites, in sites."""
    return noise_share_stddev(plan) * math.sqrt(sites) / fairness_weight(plan)


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


def scores_of(total: NDArray[np.int64], plan: Plan, sites: int) -> Scores:
    """All that the sum of an evaluation over ``sites`` sites says.

    ``total`` int64[n] with the n of ``plan.vector_length``. The errors are first order (each
    coordinate's noise variance through the derivative of the score); they say nothing of sampling
    error. Where noise left nothing to divide by, the score is that of knowing nothing.
    """
    if total.shape != (plan.vector_length(Kind.EVALUATE, 0),) or sites < 1:
        raise Misuse(f"no score from a sum of shape {total.shape} over {sites} sites")
    stddev, counts, length = noise_share_stddev(plan), total.astype(np.float64), plan.score_length
    unit = plan.evaluation.error_bound or 1.0

    def read(part: NDArray[np.float64]) -> tuple[float, float]:
        share, error = METRICS[plan.evaluation.metric].read(part, stddev * math.sqrt(sites))
        return share * unit, error * unit

    found = Scores(*read(counts[:length]))
    if plan.evaluation.personalised:
        own, error = read(counts[length : 2 * length])
        found = replace(found, personalised=own, personalised_stderr=error)
    if bins := plan.evaluation.fairness_bins:
        found = replace(
            found,
            fairness=tuple((counts[-bins:] / fairness_weight(plan)).tolist()),
            fairness_stderr=fairness_noise(plan, sites),
        )
    return found


def score_of(total: NDArray[np.int64], plan: Plan, sites: int) -> tuple[float, float]:
    """The global model's score and its standard error, see :func:`scores_of`."""
    found = scores_of(total, plan, sites)
    return found.score, found.stderr
