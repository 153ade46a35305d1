"""Secret Poisson batches of units, and the loss of each unit in one.

A unit is what one release protects: a person with all their rows, or a single record. See
:func:`fedflow.learning.workload.units_of`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fedflow.crypto.csprng import Csprng
from fedflow.learning.workload import Persons, Workload
from fedflow.privacy.noise import poisson_mask

#: x float32[B, R, F], y float32[B, R, ..], weights float32[B, R]: each unit's weights sum to 1, and
#: a padded row weighs 0. B may be 0.
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def poisson_batches(units: Persons, steps: int, rate: float, csprng: Csprng) -> Iterator[Batch]:
    """``steps`` independent Poisson samples of ``units`` at ``rate``."""
    x, y = torch.from_numpy(units.x), torch.from_numpy(units.y)
    counts = units.mask.sum(axis=1, keepdims=True)
    weights = torch.from_numpy((units.mask / np.maximum(counts, 1)).astype(np.float32))
    for _ in range(steps):
        chosen = torch.from_numpy(np.flatnonzero(poisson_mask(len(units), rate, csprng)))
        yield x[chosen], y[chosen], weights[chosen]


def unit_losses(workload: Workload, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean loss over each unit's rows, float32[B]; what stands in a padded row has no effect."""
    x, y, weights = batch
    padded = weights == 0
    if bool(padded.any()):
        # 0 times an overflowing derivative is not a number: such a row is not even looked at
        x, y = x.masked_fill(padded.unsqueeze(-1), 0.0), _emptied(y, padded)
    losses = workload.loss(model(x), y)
    return torch.where(padded, 0.0, losses * weights).sum(dim=1)


def _emptied(y: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
    return y.masked_fill(padded.reshape(padded.shape + (1,) * (y.ndim - padded.ndim)), 0.0)
