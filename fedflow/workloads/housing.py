"""What homes in a census tract are worth: linear regression, squared error.

Harrison and Rubinfeld, "Hedonic housing prices and the demand for clean air" (1978). Data: one CSV
file per site with the columns ``tract`` (an id), ``medv`` (median value in thousands of dollars)
and those of ``COLUMNS``, one row per tract. The metric is "mse" of the target (value - 25) / 25, so
an error of 1 is one of 25,000 dollars.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedflow.learning.randhie import LogisticRegression
from fedflow.learning.table import Table
from fedflow.learning.workload import PersonData, group_by_person

#: Column -> (centre, scale): the feature is (value - centre) / scale, clamped to -3..3. Round
#: numbers from what the columns mean (shares in per cent, years, rooms, ratios), not from the rows:
#: those would be a release of their own.
COLUMNS: dict[str, tuple[float, float]] = {
    "crim": (5.0, 10.0),  # offences per person and year, per cent
    "zn": (10.0, 25.0),  # share of large lots, per cent
    "indus": (10.0, 10.0),  # share of industry, per cent
    "chas": (0.0, 1.0),  # beside the river or not
    "nox": (0.5, 0.15),  # parts per ten million
    "rm": (6.0, 1.0),  # rooms
    "age": (50.0, 30.0),  # share built before 1940, per cent
    "dis": (4.0, 3.0),  # distance to work
    "rad": (10.0, 10.0),  # index of roads, 1 to 24
    "tax": (400.0, 200.0),  # per 10,000 dollars
    "ptratio": (18.0, 3.0),  # pupils per teacher
    "b": (300.0, 100.0),  # at most 396.9 by its definition
    "lstat": (12.0, 8.0),  # per cent
}
#: Values were cut off at 50 thousand dollars: the target is (value - 25) / 25.
CENTRE, SCALE = 25.0, 25.0


class Housing:
    """The workload ``housing``. One score per row, the value itself."""

    name = "housing"
    unit_column = "tract"
    reference_persons = 70
    score_range = (0.0, 1.0)

    def build_model(self) -> torch.nn.Module:
        """Thirteen weights and an intercept, all zero."""
        return LogisticRegression(len(COLUMNS) + 1)

    def load(self, path: str | Path) -> PersonData:
        """One site's tracts; InputError naming file, row and column."""
        table = Table(path, [self.unit_column, "medv", *COLUMNS])
        values = [
            np.clip((table.numbers(column) - centre) / scale, -3.0, 3.0)
            for column, (centre, scale) in COLUMNS.items()
        ]
        target = np.clip((table.numbers("medv") - CENTRE) / SCALE, -1.0, 1.0)
        return group_by_person(
            np.stack([*values, np.ones(len(target))], axis=1).astype(np.float32),
            target.astype(np.float32),
            table.identifiers(self.unit_column),
            dataset=self.name,
            max_rows=1,
            where=table.where,
        )

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Half the squared error per row."""
        return (scores - y) ** 2 / 2.0


workload = Housing()
