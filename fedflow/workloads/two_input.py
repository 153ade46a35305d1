"""Two inputs at once: a signal, read by convolutions, and columns of a table, side by side.

An example of a multimodal model. Every row holds both inputs one after the other, and the model
takes them apart: a branch for each, whose outputs are joined before the last two layers. Data: one
CSV file per site with the columns ``person``, ``label`` (0 or 1), those of ``COLUMNS`` (-1 to 1)
and ``s0`` to ``s31`` (-2 to 2), the signal. :func:`site_table` makes rows up in which the label
needs both inputs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from fedflow.learning.public_weights import public_model
from fedflow.learning.table import Table
from fedflow.learning.workload import PersonData, group_by_person

COLUMNS = ("a", "b")
SAMPLES = 32
SIGNAL = tuple(f"s{i}" for i in range(SAMPLES))
LABEL = "label"
ROWS = 240


class TwoBranches(torch.nn.Module):
    """[B, R, 2 + 32] to one score per row, [B, R]."""

    def __init__(self) -> None:
        super().__init__()
        self.waves = torch.nn.Conv1d(1, 8, 5, stride=2, padding=2)
        self.signal = torch.nn.Linear(8, 8)
        self.table = torch.nn.Linear(len(COLUMNS), 8)
        self.joined = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The table's columns come first in a row."""
        rows = x.flatten(0, -2)
        table, signal = rows[:, : len(COLUMNS)], rows[:, None, len(COLUMNS) :]
        waves = torch.tanh(self.waves(signal)).mean(dim=-1)
        both = torch.cat([torch.tanh(self.signal(waves)), torch.tanh(self.table(table))], dim=-1)
        scores: torch.Tensor = self.head(torch.tanh(self.joined(both)))
        return scores.view(x.shape[:-1])


class TwoInput:
    """The workload ``two-input``."""

    name = "two-input"
    unit_column = "person"
    reference_persons = 200
    score_range = (0.0, 1.0)

    def build_model(self) -> torch.nn.Module:
        """:class:`TwoBranches` from the public seed 0."""
        return public_model(TwoBranches)

    def load(self, path: str | Path) -> PersonData:
        """One site's rows, one per person; InputError naming file, row and column."""
        table = Table(path, [self.unit_column, LABEL, *COLUMNS, *SIGNAL])
        values = [np.clip(table.numbers(column), -1.0, 1.0) for column in COLUMNS]
        values += [np.clip(table.numbers(column), -2.0, 2.0) for column in SIGNAL]
        return group_by_person(
            np.stack(values, axis=1).astype(np.float32),
            table.numbers(LABEL, choices=(0.0, 1.0)).astype(np.float32),
            table.identifiers(self.unit_column),
            dataset=self.name,
            max_rows=1,
            where=table.where,
        )

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats per row."""
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")


workload = TwoInput()


def site_table(site: str, rows: int = ROWS) -> bytes:
    """CSV bytes of made-up rows of one site: the same for the same name, about nobody.

    A signal is a bump somewhere, up or down; the label is whether its height and column ``a``
    together are positive, but for every sixteenth row.
    """
    label = b"fedflow/1 two-input rows\0" + site.encode()
    width = len(COLUMNS) + 2 + SAMPLES
    drawn = np.frombuffer(hashlib.shake_256(label).digest(width * rows), np.uint8)
    numbers = drawn.reshape(rows, width) / 127.5 - 1.0
    lines = [",".join(["person", LABEL, *COLUMNS, *SIGNAL])]
    for row, (a, b, height, place, *noise) in enumerate(numbers):
        at = np.arange(SAMPLES) - SAMPLES / 2 - 10 * place
        signal = 1.8 * height * np.maximum(1 - np.abs(at) / 5, 0) + 0.1 * np.array(noise)
        positive = (a + height > 0) != (row % 16 == 15)
        cells = [f"{value:.3f}" for value in (a, b, *signal)]
        lines.append(f"{site}-{row},{int(positive)},{','.join(cells)}")
    return ("\n".join(lines) + "\n").encode()
