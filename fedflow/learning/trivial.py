"""Four parameters over made-up rows: for trying how a federation runs, not what it learns.

Training takes a millisecond, so what is left of a round is the federation itself. Everything else
is as for real data: rows are read and checked, gradients clipped and noised, every release charged.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from fedflow.learning.randhie import LogisticRegression
from fedflow.learning.table import Table
from fedflow.learning.workload import PersonData, group_by_person

COLUMNS = ("a", "b", "c")
LABEL = "label"
ROWS = 120
DATA_FILE = "trivial.csv"


class Trivial:
    """The workload ``trivial``: a logistic regression on three numbers from -1 to 1."""

    name = "trivial"
    unit_column = "person"
    reference_persons = 100
    score_range = (0.0, 1.0)
    features = len(COLUMNS) + 1
    feature_names = (*COLUMNS, "one")
    bounds = (-1.0, 1.0)
    target_bounds = (0.0, 1.0)
    classes = 2

    def build_model(self) -> torch.nn.Module:
        """Three weights and an intercept, all zero."""
        return LogisticRegression(len(COLUMNS) + 1)

    def load(self, path: str | Path) -> PersonData:
        """One site's rows, one per person; InputError for anything else."""
        table = Table(path, [self.unit_column, LABEL, *COLUMNS])
        values = [np.clip(table.numbers(column), -1.0, 1.0) for column in COLUMNS]
        return group_by_person(
            np.stack([*values, np.ones(len(values[0]))], axis=1).astype(np.float32),
            table.numbers(LABEL, choices=(0.0, 1.0)).astype(np.float32),
            table.identifiers(self.unit_column),
            dataset=self.name,
            max_rows=1,
            where=table.where,
        )

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats per row."""
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")


workload = Trivial()


def site_table(site: str, rows: int = ROWS) -> bytes:
    """CSV bytes of made-up rows of one site: the same for the same name, about nobody.

    The label is whether ``a + b / 2`` is positive, but for every eighth row.
    """
    label = b"fedflow/1 trivial rows\0" + site.encode()
    drawn = np.frombuffer(hashlib.shake_256(label).digest(3 * rows), np.uint8).reshape(rows, 3)
    values = drawn / 127.5 - 1.0
    lines = [",".join(["person", *COLUMNS, LABEL])]
    for row, (a, b, c) in enumerate(values):
        positive = (a + b / 2 > 0) != (row % 8 == 7)
        lines.append(f"{site}-{row},{a:.4f},{b:.4f},{c:.4f},{int(positive)}")
    return ("\n".join(lines) + "\n").encode()


def write_site(path: Path, site: str, rows: int = ROWS) -> None:
    """Write :func:`site_table` to ``path``, for this user only."""
    path.write_bytes(site_table(site, rows))
    path.chmod(0o600)
