"""Noise in shares, for ``fedflow plan check``: what each site adds, and on which grid."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from fedflow.learning.first_model import plan_spec
from fedflow.learning.plan import Plan
from fedflow.learning.summed_noise import SMALLEST_SHARE, inflation, share_stddev, unit_sensitivity
from fedflow.learning.value_range import initial_range
from fedflow.learning.workload import Workload
from fedflow.privacy.discrete import epsilon_conservative, share_gap
from fedflow.privacy.plan_cost import training_event

SMALLEST_GAP = 1e-270  #: what a gap too small for a double is shown as; it is below that


@dataclass(frozen=True, slots=True)
class Shares:
    """The first round of a plan with noise in shares.

    ``share_steps`` is a share's standard deviation in grid steps of ``resolution``, ``share`` the
    same in units of an update; ``inflation`` the integer sensitivity over that of real values, both
    of one unit. ``gap`` bounds how the log probability of summed shares differs from one discrete
    Gaussian. ``conservative_epsilon`` is None without sampling.
    """

    dimension: int
    honest: int
    resolution: float
    share: float
    share_steps: float
    inflation: float
    gap: float
    conservative_epsilon: float | None

    @classmethod
    def of(cls, plan: Plan, sites: int, workload: Workload) -> Self:
        """Refusals as :func:`~fedflow.learning.summed_noise.share_stddev`: such a plan cannot run.

        Misuse for a plan with local noise.
        """
        sensitivity = unit_sensitivity(plan, plan.privacy.clipping_norm, workload.reference_persons)
        bit = plan.privacy.clipping_quantile is not None
        dimension = plan.sent(plan_spec(workload, plan).dimension) + bit
        coding = plan.coding(sites, initial_range(plan, workload.reference_persons))
        steps = share_stddev(plan, coding, dimension, sensitivity)
        event = training_event(plan).repeated(max(plan.trainings(plan.plan.rounds), 1))
        sampled = event.sample_rate < 1.0
        return cls(
            dimension=dimension,
            honest=plan.cohort.minimum - plan.cohort.colluders,
            resolution=coding.values.resolution,
            share=steps * coding.values.resolution,
            share_steps=steps,
            inflation=inflation(coding, dimension, sensitivity),
            gap=share_gap(sites, steps),
            conservative_epsilon=(
                epsilon_conservative(event, plan.privacy.delta) if sampled else None
            ),
        )

    def facts(self) -> dict[str, object]:
        """For machines: all fields."""
        return asdict(self)

    def sentences(self, plan: Plan) -> tuple[str, ...]:
        """For people: the shares, why discreteness costs nothing, and the careful figure."""
        unit, delta = plan.privacy.unit, plan.privacy.delta
        said = (
            f"noise in shares: each site adds a standard deviation of {self.share:.3g}"
            f" ({self.share_steps:.4g} grid steps of {self.resolution:.2g}) to each of"
            f" {self.dimension} coordinates, so that {self.honest} honest shares reach the plan's;"
            f" rounding to the grid raises it by {100 * (self.inflation - 1):.2g} %",
            f"discrete noise costs nothing more: with shares of at least {SMALLEST_SHARE:g} grid"
            f" steps the probabilities of their sum are those of one discrete Gaussian up to a"
            f" factor of 1 + {max(self.gap, SMALLEST_GAP):.0e} (Kairouz et al. 2021, Proposition"
            " 14)",
        )
        if self.conservative_epsilon is None:
            return said
        return (
            *said,
            f"conservative figure for the whole plan: ε {self.conservative_epsilon:.3f} per {unit}"
            f" at δ = {delta:g} against the server and {plan.cohort.colluders} colluders. The"
            " figures below price sampling as for a continuous Gaussian; this one (Zhu and Wang"
            " 2019, Theorem 5) uses only the discrete noise's own Rényi divergence",
        )
