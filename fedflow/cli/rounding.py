"""What a plan's bits cost: the rounding error of a mean beside its privacy noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from fedflow.learning.plan import Plan
from fedflow.learning.summed_noise import DEVIATIONS
from fedflow.learning.value_range import initial_range, update_noise_stddev
from fedflow.secagg.quantise import RING_BITS, integer_limit

#: Rounding above this share of the privacy noise deserves a warning.
TOLERATED = 0.1


@dataclass(frozen=True, slots=True)
class Rounding:
    """The first round of a plan with ``sites`` sites of equal weight, per coordinate.

    ``value_range``, ``resolution`` (one grid step) and ``rounding_stddev`` (of the mean, at most)
    are None when the range is chosen later; so is ``noise_stddev`` (privacy noise of the mean) when
    the workload is not installed. ``warning`` names the setting to change.
    """

    sites: int
    automatic: bool
    value_range: float | None
    resolution: float | None
    rounding_stddev: float | None
    noise_stddev: float | None
    warning: str

    @classmethod
    def of(cls, plan: Plan, sites: int, reference_persons: int | None) -> Self:
        """``reference_persons`` is the workload's, or None when it is not installed."""
        fixed = plan.secure_aggregation.value_range
        if reference_persons is None:
            first, noise = (None if fixed == "auto" else fixed), None
        else:
            first = initial_range(plan, reference_persons)
            noise = update_noise_stddev(plan, reference_persons) / plan.smallest_sum(sites) ** 0.5
        if first is None:
            return cls(sites, True, None, None, None, noise, "")
        grid = plan.coding(sites, first).values
        rounding, warning = grid.rounding_stddev(plan.smallest_sum(sites)), ""
        if noise is not None and rounding > TOLERATED * noise:
            share = _percent(rounding / noise)
            warning = (
                f"rounding is {share} of the privacy noise in the first round, over"
                f" {_percent(TOLERATED)}; {_advice(plan, sites, first, noise)}"
            )
        return cls(sites, fixed == "auto", first, grid.resolution, rounding, noise, warning)

    def facts(self) -> dict[str, object]:
        """For machines: all fields, with None for what is not known here."""
        return asdict(self)

    def sentence(self) -> str:
        """For people: the first round's grid and what it adds."""
        if self.value_range is None or self.rounding_stddev is None:
            return (
                "value_range is automatic: it is chosen when the job is made, as the workload is"
                " not installed here"
            )
        text = (
            f"first round: updates within ±{self.value_range:g} in steps of {self.resolution:.2g};"
            f" rounding adds a standard deviation of at most {self.rounding_stddev:.2g} to the mean"
        )
        if self.noise_stddev is None:
            return text + "; its privacy noise is not known, as the workload is not installed here"
        share = _percent(self.rounding_stddev / self.noise_stddev)
        text += f", which is {share} of its privacy noise of {self.noise_stddev:.2g}"
        return text + ("; later rounds narrow the range" if self.automatic else "")


def _advice(plan: Plan, sites: int, value_range: float, noise: float) -> str:
    """The setting that brings rounding under what is tolerated."""
    site_noise = noise * plan.smallest_sum(sites) ** 0.5
    steps = value_range / (2.0 * TOLERATED * site_noise)  # R at least; the number of sites cancels
    enough = [
        bits
        for bits in range(plan.secure_aggregation.bits + 1, RING_BITS + 1)
        if integer_limit(sites, bits) >= steps
    ]
    advice = [f"set secure_aggregation.bits to at least {enough[0]}"] if enough else []
    if plan.secure_aggregation.value_range != "auto":
        narrow = 2.0 * TOLERATED * site_noise * integer_limit(sites, plan.secure_aggregation.bits)
        if narrow >= DEVIATIONS * site_noise:  # below that the noise itself would be clipped
            advice.append(f"lower secure_aggregation.value_range to {narrow:.2g}")
        elif not enough:
            advice.append('set secure_aggregation.value_range to "auto"')
    return " or ".join(advice) or "raise privacy.noise_multiplier or take fewer sites"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share < 1 else f"{100 * share:.0f} %"
