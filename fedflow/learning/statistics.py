"""What a finished job of ``strategy.name = "moments"`` says of the columns, and what follows.

Everything here is computed from a noised sum that is public already, so it costs nothing. Where
noise left too little to know, the column's public bounds stand in: the middle, half the range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse
from fedflow.learning.methods import SUMS
from fedflow.learning.methods.base import ROUNDS, size_of
from fedflow.learning.methods.columns import Column, columns_of
from fedflow.learning.methods.histogram import quantile
from fedflow.learning.methods.moments import parts
from fedflow.learning.model_file import Arrays
from fedflow.learning.plan import Plan
from fedflow.learning.plan_sections import ColumnSection, PreprocessingSection
from fedflow.learning.summed_noise import share_stddev, unit_sensitivity
from fedflow.learning.value_range import initial_range
from fedflow.learning.workload import Workload
from fedflow.settings_file import toml_string

#: Probability that noise alone brings any category into any vocabulary of a job.
FALSE_CATEGORY = 1e-3
#: Shares of the present values below the three quantiles that are shown.
QUANTILES = (0.01, 0.5, 0.99)
#: A count of fewer noise deviations than these tells nothing.
_FEW = 3.0
_SMALLEST_DEVIATION = 1e-3  # of the column's range: a scale is divided by


@dataclass(frozen=True)
class ColumnStatistics:
    """One column, noised. ``missing`` is a share of the units; ``error`` the noise in it.

    Numeric: ``mean`` and ``deviation`` of the present values, ``quantiles`` those of
    :data:`QUANTILES`. Categorical: ``counts`` of the codes, float64[K + 1], and those ``kept``.
    """

    column: Column
    missing: float
    error: float
    mean: float = 0.0
    deviation: float = 1.0
    quantiles: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    kept: tuple[int, ...] = ()


def statistics_of(
    workload: Workload, state: Arrays, plan: Plan, *, sites: int
) -> tuple[ColumnStatistics, ...]:
    """The columns' statistics from the ``state`` that a job of ``sites`` sites ended with."""
    if plan.strategy.name != "moments":
        raise Misuse('statistics come from a job with strategy.name "moments"')
    columns, sums = columns_of(workload), state[SUMS].astype(np.float64)
    rounds = max(int(state[ROUNDS][0]), 1)
    noise = noise_stddev(plan, sums.size, workload.reference_persons, sites) / math.sqrt(rounds)
    units = max(float(sums[0]), noise, 1.0)
    categories = sum(column.categories for column in columns)
    least = noise * NormalDist().inv_cdf(1.0 - FALSE_CATEGORY / max(categories, 1))
    out = []
    for column, part in parts(columns, size_of(plan, "bins")):
        own = sums[part]
        missing = min(max(float(own[0]) / units, 0.0), 1.0)
        if column.categories:
            kept = np.flatnonzero(own[1 : 1 + column.categories] > least)
            out.append(
                ColumnStatistics(
                    column,
                    missing,
                    noise / units,
                    counts=tuple(float(count) for count in own[1:]),
                    kept=tuple(int(code) for code in kept),
                )
            )
        else:
            out.append(_numeric(column, own, missing, units, noise))
    return tuple(out)


def noise_stddev(plan: Plan, dimension: int, reference_units: int, sites: int) -> float:
    """Standard deviation of the noise in each number of one sum over ``sites`` sites, in units."""
    first = initial_range(plan, reference_units)
    coding = plan.coding(sites, first)
    sensitivity = unit_sensitivity(plan, plan.privacy.clipping_norm, reference_units)
    share = share_stddev(plan, coding, dimension, sensitivity) * coding.values.resolution
    return share * math.sqrt(sites) / plan.privacy.sample_rate


def section_of(found: Sequence[ColumnStatistics], clamp: float = 5.0) -> PreprocessingSection:
    """The ``[preprocessing]`` that follows: the mean for what is missing, zero mean, variance 1.

    A missing category becomes "other", as do those that too few units have.
    """
    return PreprocessingSection(
        clamp=clamp,
        columns=tuple(
            ColumnSection(
                name=each.column.name, fill=float(each.column.other), keep=tuple(each.kept)
            )
            if each.column.categories
            else ColumnSection(
                name=each.column.name,
                fill=min(max(_short(each.mean), each.column.low), each.column.high),
                centre=_short(each.mean),
                scale=_short(each.deviation),
            )
            for each in found
        ),
    )


def section_toml(section: PreprocessingSection) -> str:
    """The section as the text of a plan."""
    lines = ["[preprocessing]", f"clamp = {section.clamp!r}", "columns = ["]
    for column in section.columns:
        fields = [f"name = {toml_string(column.name)}", f"fill = {column.fill!r}"]
        if (column.centre, column.scale) != (0.0, 1.0):
            fields += [f"centre = {column.centre!r}", f"scale = {column.scale!r}"]
        if column.keep is not None:
            fields.append(f"keep = {list(column.keep)}")
        lines.append(f"  {{ {', '.join(fields)} }},")
    return "\n".join([*lines, "]", ""])


def _numeric(
    column: Column, own: NDArray[np.float64], missing: float, units: float, noise: float
) -> ColumnStatistics:
    low, high, bins = column.low, column.high, own[3:]
    middle, half = (low + high) / 2, (high - low) / 2
    present = units - float(own[0])
    if present <= _FEW * noise:
        first, second = 0.0, 1.0
    else:
        first = min(max(float(own[1]) / present, -1.0), 1.0)
        second = min(max(float(own[2]) / present, 0.0), 1.0)
    kept = _inner(bins, _FEW * noise)
    # A scale that is too small blows up noise as if it were data; one standard error is the least.
    unsure = noise / max(present, noise) * math.sqrt(1.0 + 4.0 * first * first)
    deviation = math.sqrt(max(second - first * first, unsure, _SMALLEST_DEVIATION**2))
    return ColumnStatistics(
        column,
        missing,
        noise / units,
        mean=middle + half * first,
        deviation=half * deviation,
        quantiles=tuple(quantile(kept, share, low, high) for share in QUANTILES),
    )


def _inner(bins: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """``bins`` from the first to the last above ``least``; the tails may be noise, and are zero."""
    sure = np.flatnonzero(bins > least)
    out = np.zeros_like(bins)
    if sure.size:
        inside = slice(sure[0], sure[-1] + 1)
        out[inside] = bins[inside]
    return out


def _short(value: float) -> float:
    """Five digits: more would be noise."""
    return float(f"{value:.5g}")
