"""What groups and their median cost, for ``fedflow plan check``: noise, rounds, who is asked."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from fedflow.learning.groups import check_groups
from fedflow.learning.plan import Plan
from fedflow.secagg.params import Thresholds


@dataclass(frozen=True, slots=True)
class Grouping:
    """A plan with groups, at so many sites.

    A group's sum opens for ``survivors`` sites of the ``smallest``, or more.

    ``noise_factor`` is the standard deviation of the median over that of the mean of one sum of all
    sites, each with the noise it has now. With noise in shares one sum could have a larger
    ``cohort.minimum``, hence smaller shares: ``noise_factor_one_sum`` is against that. Both are for
    groups of equal size and Gaussian noise only.
    """

    groups: int
    smallest: int
    survivors: int
    wrong_groups: int
    steps: int
    trainings: int
    noise_factor: float
    noise_factor_one_sum: float

    @classmethod
    def of(cls, plan: Plan, sites: int) -> Self | None:
        """None where no group trains; Refusal ``too-few-sites`` if they are too small for a sum."""
        groups, cohort = plan.participation.groups, plan.cohort
        if groups is None or not plan.plan.rounds:
            return None
        check_groups(plan, sites)
        smallest = plan.smallest_sum(sites)
        factor = math.sqrt(groups * median_variance(groups))
        shares = (sites - cohort.colluders) / (cohort.minimum - cohort.colluders)
        return cls(
            groups=groups,
            smallest=smallest,
            survivors=Thresholds.for_cohort(smallest, cohort.colluders, cohort.minimum).survivors,
            wrong_groups=(groups - 1) // 2,
            steps=plan.plan.rounds // groups,
            trainings=plan.trainings(plan.plan.rounds),
            noise_factor=factor,
            noise_factor_one_sum=factor
            * (math.sqrt(shares) if plan.privacy.mechanism != "local" else 1.0),
        )

    def facts(self) -> dict[str, object]:
        """For machines: all fields."""
        return asdict(self)

    def sentences(self) -> tuple[str, ...]:
        """For people: what a cycle is, and its price."""
        said = (
            f"{self.groups} groups of {self.smallest} sites or more: {self.groups} rounds, a cycle,"
            f" make one step along the median of their means, {self.steps} steps in all; each site"
            f" trains in {self.trainings} rounds. A group's sum opens for {self.survivors} or more"
            f" of it, and without one the job ends. Wrong sites in up to {self.wrong_groups} of the"
            " groups do not decide a coordinate",
            f"price of the median: {self.noise_factor:.2f} times the noise of one mean over all"
            " sites, for the same noise at each",
        )
        if self.noise_factor_one_sum == self.noise_factor:
            return said
        more = "; one sum could have cohort.minimum at all sites and smaller shares: against that"
        return said[0], f"{said[1]}{more} {self.noise_factor_one_sum:.2f} times"


def median_variance(count: int) -> float:
    """Variance of the median of ``count`` standard normals; near pi / (2 count) for many.

    By the trapezoidal rule on the density of the middle order statistics (David and Nagaraja,
    "Order Statistics", 2003, section 2): one of an odd count, the mean of two of an even one.
    """
    grid = np.linspace(-7.0, 7.0, 1401)
    step = grid[1] - grid[0]
    density = np.exp(-grid * grid / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in grid])
    half = (count - 1) // 2  # of the values lie below the middle, and as many above
    with np.errstate(divide="ignore"):
        low, high = half * np.log(below), half * np.log1p(-below)
    if count % 2:
        scale = math.lgamma(count + 1) - 2 * math.lgamma(half + 1)
        weights = density * np.exp(scale + low + high)
        return float((grid * grid * weights).sum() * step)
    scale = math.lgamma(count + 1) - 2 * math.lgamma(half + 1)
    joint = np.exp(scale + low[:, None] + high[None, :]) * density[:, None] * density[None, :]
    middle = (grid[:, None] + grid[None, :]) / 2
    upper = np.triu(np.ones_like(joint)) - 0.5 * np.eye(len(grid))
    return float((middle * middle * joint * upper).sum() * step * step)
