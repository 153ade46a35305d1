"""What a table looks like, in one secure sum: missing values, means, variances, bins, categories.

A unit adds 1 to the number of units. For each numeric column its rows add, sharing their unit's
weight: 1 if the value is missing, else ``v``, ``v²`` and a count in one of the bins, where ``v``
from -1 to 1 is the value between the column's public bounds. For each categorical column: 1 if it
is missing, else a count of its code. Sums of powers give means and variances with less noise than
bins would; bins give quantiles. True minima and maxima are not private (one person is enough to
move them), so there are none: a range is one from quantile to quantile.

A unit's norm is at most :func:`largest_norm`. Plans of several rounds average the noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedflow.learning.methods.base import (
    Describing,
    Real,
    row_weights,
    size_of,
)
from fedflow.learning.methods.columns import Column, columns_of
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload

#: Numbers of a numeric column before its bins: missing, v, v².
_POWERS = 3


class Moments(Describing):
    """``strategy.name = "moments"``: d = 1 + column by column."""

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        return 1 + sum(_size(column, size_of(plan, "bins")) for column in columns_of(workload))

    def unit_values(self, workload: Workload, units: Persons, state: Arrays, plan: Plan) -> Real:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        columns, bins, weights = columns_of(workload), size_of(plan, "bins"), row_weights(units)
        out = np.zeros((len(units), self.dimension(workload, plan)))
        out[:, 0] = 1.0
        person = np.broadcast_to(np.arange(len(units))[:, None], weights.shape)
        for at, (column, part) in enumerate(parts(columns, bins)):
            x = units.x[:, :, at].astype(np.float64)
            missing = np.isnan(x)
            present = np.where(missing, 0.0, weights)
            own = out[:, part]
            own[:, 0] = (weights * missing).sum(axis=1)
            x = np.where(missing, column.low, np.clip(x, column.low, column.high))
            if column.categories:
                np.add.at(own, (person, 1 + np.rint(x).astype(np.int64)), present)
                continue
            share = (x - column.low) / (column.high - column.low)
            v = 2.0 * share - 1.0
            own[:, 1] = (present * v).sum(axis=1)
            own[:, 2] = (present * v * v).sum(axis=1)
            bin_ = np.minimum(np.floor(share * bins), bins - 1).astype(np.int64)
            np.add.at(own, (person, _POWERS + bin_), present)
        return out


def parts(columns: Sequence[Column], bins: int) -> Iterator[tuple[Column, slice]]:
    """Each column with where its numbers are in the sum."""
    at = 1
    for column in columns:
        end = at + _size(column, bins)
        yield column, slice(at, end)
        at = end


def largest_norm(columns: Sequence[Column]) -> float:
    """The largest L2 norm of what one unit adds, before it is clipped."""
    return math.sqrt(1 + sum(1 if column.categories else _POWERS for column in columns))


def _size(column: Column, bins: int) -> int:
    return column.categories + 2 if column.categories else _POWERS + bins
