"""Canaries: training units whose effect on a release is known beforehand.

*White-box.* :class:`CanaryWorkload` gives the model one more weight for each canary. A canary is an
ordinary unit of a site's data whose loss is a steep line in its own weight, so its gradient is that
one coordinate, always, and far above the clipping norm: whenever it is sampled and clipped, it adds
exactly the clipping norm along its own direction, and directions of different canaries are
orthogonal. It is data and a workload, so nothing in a site's code knows of canaries, and whatever
the code does to a unit (sampling, clipping, rounding, noise, masks) it does to them.

*Black-box.* :func:`mislabelled` makes units with wrong labels, for those who see models only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse
from fedflow.learning.objective import objective
from fedflow.learning.plan import Plan
from fedflow.learning.workload import PersonData, Persons, Workload, trained_parameters

#: The label of a canary's rows: no data set's.
CANARY_LABEL = -(2.0**20)
#: How far above the clipping norm a canary's gradient (or, at a site, its step) is.
STEEPNESS = 1000.0
_WEIGHTS = "canary.weight"
_FEW_LABELS = 32


class CanaryModel(torch.nn.Module):
    """``inner`` and one weight for each of ``count`` canaries.

    The last feature is 0 for an ordinary row, which scores what ``inner`` says. A row with 1 to
    ``count`` there scores ``slope`` times that weight; with ``count + 1`` always zero.
    """

    def __init__(self, inner: torch.nn.Module, count: int, slope: float) -> None:
        super().__init__()
        self.inner = inner
        self.canary = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
            torch.nn.Linear, count, 1, bias=False
        )
        torch.nn.init.zeros_(self.canary.weight)
        self._count, self._slope = count, slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., F + 1] to what ``inner`` makes of [.., F]."""
        scores: torch.Tensor = self.inner(x[..., :-1])
        number = x[..., -1].long()
        one_hot = torch.nn.functional.one_hot(number, self._count + 2)[..., 1:-1]
        line = self.canary(one_hot.to(x.dtype) * self._slope).squeeze(-1)
        shape = line.shape + (1,) * (scores.ndim - line.ndim)
        return torch.where((number > 0).reshape(shape), line.reshape(shape), scores)


class CanaryWorkload:
    """``inner`` with room for ``count`` white-box canaries, for one plan.

    Its data are ``inner``'s with one feature more, see :meth:`prepared`.
    """

    is_objective = True  #: the plan's own changes of the loss are ``inner``'s; a canary has none

    def __init__(self, inner: Workload, count: int, plan: Plan) -> None:
        if count < 1:
            raise Misuse("there is at least one canary")
        self.inner, self.count = objective(inner, plan), count
        self.name, self.unit_column = inner.name, inner.unit_column
        self.reference_persons, self.score_range = inner.reference_persons, inner.score_range
        self._slope = STEEPNESS * plan.privacy.clipping_norm
        if plan.privacy.mechanism == "site":  # what is clipped there is a step of the optimiser's
            self._slope /= plan.training.learning_rate
        self._one_row = plan.privacy.unit == "record"

    def build_model(self) -> torch.nn.Module:
        """The inner workload's public initial model; canary weights start at zero."""
        return CanaryModel(self.inner.build_model(), self.count, self._slope)

    def load(self, path: str | Path) -> PersonData:
        """The inner workload's file, without a canary."""
        data = self.inner.load(path)
        return PersonData(self.prepared(data.train), self.prepared(data.holdout))

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The inner loss per row; a canary's own score for its rows."""
        canary = y == CANARY_LABEL
        shape = canary.shape + (1,) * (scores.ndim - y.ndim)
        line = scores
        while line.ndim > y.ndim:
            line = line[..., 0]
        # Zeros, not the steep line, go into a loss whose gradient is dropped: 0 * inf is not 0.
        inner = self.inner.loss(
            torch.where(canary.reshape(shape), torch.zeros_like(scores), scores),
            torch.where(canary, torch.zeros_like(y), y),
        )
        return torch.where(canary, line, inner)

    def prepared(self, persons: Persons) -> Persons:
        """``persons`` of the inner workload, as this one's."""
        zero = np.zeros((*persons.x.shape[:2], 1), np.float32)
        x = np.concatenate([persons.x, zero], axis=2)
        return Persons(x, persons.y, persons.mask, persons.ids)

    def units(self, like: Persons, numbers: NDArray[np.int64], copies: int = 1) -> Persons:
        """Canaries ``numbers`` (0 .. count - 1), ``copies`` units of each, shaped as ``like``.

        Every other canary has one row only, the rest as many as fit: what is protected is the unit.
        (With records as units, all have one.) The number ``count`` makes units without any effect:
        they are sampled and clipped, but their gradient is zero.
        """
        chosen = np.repeat(numbers, copies)
        shape = (chosen.size, like.x.shape[1])
        x = np.zeros((*shape, like.x.shape[2]), np.float32)
        x[..., -1] = (chosen + 1)[:, None]
        mask = np.ones(shape, np.bool_)
        mask[(chosen % 2 == 0) | self._one_row, 1:] = False
        y = np.full(shape, CANARY_LABEL, np.float32)
        return Persons(x, y, mask, tuple(f"canary-{i}-{at}" for at, i in enumerate(chosen)))

    def quiet(self, like: Persons, count: int) -> Persons:
        """``count`` units whose gradients are zero: what their site sends is noise alone."""
        return self.units(like, np.full(count, self.count))

    def positions(self) -> slice:
        """Where the canaries' weights are in the flattened model."""
        at = 0
        for name, parameter in trained_parameters(self.build_model()):
            if name == _WEIGHTS:
                return slice(at, at + parameter.numel())
            at += parameter.numel()
        raise Misuse("the model has no canaries")


def coins(count: int, csprng: Csprng) -> NDArray[np.bool_]:
    """bool[count], each true with probability 1/2."""
    return (csprng.uint32(count) & np.uint32(1)).astype(np.bool_)


def mislabelled(persons: Persons) -> Persons:
    """The same units with wrong labels: the next of few labels, or mirrored in their range.

    Misuse when all labels are equal: then none is wrong.
    """
    known = np.unique(persons.y[persons.mask])
    if known.size < 2:
        raise Misuse("units with one label only cannot be mislabelled")
    if known.size <= _FEW_LABELS:
        at = np.searchsorted(known, persons.y) % known.size
        y = known[(at + 1) % known.size]
    else:
        y = known[0] + known[-1] - persons.y
    y = np.where(persons.mask, y, persons.y).astype(np.float32)
    return Persons(persons.x, y, persons.mask, tuple(f"{i}-wrong" for i in persons.ids))
