"""Whether a model treats every unit apart from all others. Only then clipping bounds what one adds.

A layer that mixes examples (batch normalisation) lets one unit change the gradients of the rest;
clipping each of them bounds nothing. Known such layers are refused by type, with what to
use instead. Whatever else a model's code does is tried once per process on synthetic data: the
loss and the gradient of a unit must be the same alone and in company, nothing but gradients may
come out of a step, and the clipped sum must be that of a loop over the units, one at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
from opacus.validators import ModuleValidator
from torch.nn.modules import batchnorm, dropout, instancenorm

from fedflow.errors import Refusal
from fedflow.learning.batches import Batch, unit_losses
from fedflow.learning.workload import Workload

Sums = dict[torch.Tensor, torch.Tensor]
Trial = Callable[[Workload, torch.nn.Module, Batch, float], Sums]
Name = TypeVar("Name", bound=str)

_UNITS = 3
_CLOSE = 1e-4  # of the largest: float32 summed in another order, not another formula
_usable: dict[tuple[object, ...], tuple[str, ...]] = {}


#: What torch and Opacus raise for a model that one of their formulas does not know.
_FOREIGN = (NotImplementedError, RuntimeError, ValueError, AttributeError, TypeError)


class UnitShape(NamedTuple):
    """The shape of one unit: R rows of F features, each with ``targets`` ([] for a single one)."""

    rows: int
    features: int
    targets: tuple[int, ...] = ()

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> UnitShape:
        """Of batches ``x`` [B, R, F] and ``y`` [B, R, ..]."""
        return cls(x.shape[1], x.shape[2], tuple(y.shape[2:]))


class UnsuitableModel(Exception):
    """One method cannot clip this model; another may. Found out by the trial of methods."""


def check_model(model: torch.nn.Module) -> None:
    """Refusal "mixes-examples" or "random-layer", naming the layer and the fix, where one is known.

    By layer type only; :func:`usable_methods` tries what a model does.
    """
    for name, layer in model.named_modules():
        where, kind = f"at {name!r}" if name else "as the whole model", type(layer).__name__
        if isinstance(layer, batchnorm._BatchNorm):
            raise _mixes(f"use GroupNorm instead of {kind} {where}: it mixes the units of a batch")
        if isinstance(layer, instancenorm._InstanceNorm) and layer.track_running_stats:
            raise _mixes(
                f"set track_running_stats=False for {kind} {where}: running statistics are made"
                " of all units and leave without noise"
            )
        if _is_random(layer):
            raise Refusal(
                "random-layer",
                f"remove {kind} {where} or set its probability to 0: it draws from torch's"
                " generator, and here all randomness comes from the cryptographic one",
            )
        validator = ModuleValidator.VALIDATORS.get(type(layer))
        if errors := validator(layer) if validator else []:
            raise _mixes(f"replace {kind} {where} by Opacus' DP{kind}: {errors[0]}")


def _is_random(layer: torch.nn.Module) -> bool:
    if isinstance(layer, dropout._DropoutNd):
        return layer.training and layer.p > 0
    if isinstance(layer, torch.nn.RReLU):
        return layer.training and layer.lower < layer.upper
    share = getattr(layer, "dropout", 0.0)  # recurrent layers and attention keep it as a number
    return isinstance(share, int | float) and share > 0 and layer.training


def usable_methods(
    workload: Workload,
    model: torch.nn.Module,
    shape: UnitShape,
    trials: Mapping[Name, Trial],
) -> tuple[Name, ...]:
    """Those of ``trials`` that give the right clipped sum for units of ``shape``.

    Tried on synthetic units with a copy of the model, once per process and kind of model; takes
    about nine small backward passes. Refusal "mixes-examples", "random-layer" or "no-unit-gradient"
    when the model cannot be trained privately.
    """
    inner = type(getattr(workload, "inner", None))  # of a wrapper around another workload
    kind = (type(workload), inner, workload.name, repr(model), _shapes(model), shape, *trials)
    if kind not in _usable:
        _usable[kind] = _try(workload, model, shape, trials)
    return tuple(name for name in trials if name in _usable[kind])


def forget() -> None:
    """Try every model anew: for measurements."""
    _usable.clear()


def _try(
    workload: Workload,
    model: torch.nn.Module,
    shape: UnitShape,
    trials: Mapping[Name, Trial],
) -> tuple[str, ...]:
    batch = _synthetic(workload, shape)
    model = _moved(model)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    before = torch.get_rng_state()
    together, company = _plain(workload, model, batch)
    changed = [n for n, b in model.named_buffers() if not torch.equal(b, buffers[n])]
    if changed:
        raise _mixes(f"training changes the buffer {changed[0]!r}, which no noise protects")
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        raise Refusal(
            "random-layer",
            "the model or its loss draws from torch's generator; here all randomness comes from"
            " the cryptographic one",
        )
    alone = [
        _plain(workload, model, tuple(t[i : i + 1] for t in batch))  # type: ignore[arg-type]
        for i in range(_UNITS)
    ]
    each = torch.stack([gradient for _, gradient in alone])
    same_losses = _close(together, torch.cat([loss for loss, _ in alone]))
    if not (same_losses and _close(company, each.sum(dim=0))):
        raise _mixes(
            "the loss or gradient of a unit changes with who else is in the batch; find what"
            " the model computes across its first dimension"
        )
    norms = each.norm(dim=1)
    norm = max(float(norms.median()), 1e-6)  # some are clipped, some are not
    expected = (norm / (norms + 1e-6)).clamp(max=1.0) @ each
    works = []
    for name, trial in trials.items():
        fresh = copy.deepcopy(model)
        try:
            found = trial(workload, fresh, batch, norm)
        except (UnsuitableModel, *_FOREIGN):
            continue
        if _close(_flat(fresh, found), expected):
            works.append(name)
    if not works:
        raise Refusal(
            "no-unit-gradient",
            "the gradient of each single unit cannot be computed for this model; use layers that"
            " Opacus knows, each taking one tensor whose first dimension is the unit",
        )
    return tuple(works)


def _synthetic(workload: Workload, shape: UnitShape) -> Batch:
    """Units that differ in every row, with weights as of uneven padding.

    Features are in 0..1, or in 0..vocabulary-1 where a workload's features are tokens.
    """
    rows, features, targets = shape.rows, shape.features, shape.targets
    x = torch.arange(_UNITS * rows * features, dtype=torch.float64).sin().abs().float()
    vocabulary = int(getattr(workload, "vocabulary", 0))
    if vocabulary:
        x = (x * vocabulary).floor().clamp(max=vocabulary - 1)
    y = torch.arange(_UNITS * rows * math.prod(targets)) % 2
    weights = torch.full((_UNITS, rows), 1.0 / rows)
    if rows > 1:
        weights[0, -1] = 0.0
        weights[0, :-1] = 1.0 / (rows - 1)
    return (
        x.reshape(_UNITS, rows, features),
        y.reshape(_UNITS, rows, *targets).float(),
        weights,
    )


def _moved(model: torch.nn.Module) -> torch.nn.Module:
    """A copy away from special points: with zero weights, a wrong gradient may be zero as well."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            steps = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
            parameter.add_(0.05 * (2.4 * steps).sin().view_as(parameter).to(parameter.dtype))
            parameter.grad = None
    return moved


def _plain(
    workload: Workload, model: torch.nn.Module, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [B] and the gradient of their sum, by ordinary differentiation."""
    losses = unit_losses(workload, model, batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
    found: Sums = {p: g.flatten() for p, g in zip(trained, gradients, strict=True) if g is not None}
    return losses.detach(), _flat(model, found)


def _flat(model: torch.nn.Module, sums: Sums) -> torch.Tensor:
    zero = torch.zeros
    return torch.cat([sums.get(p, zero(p.numel())).detach() for p in model.parameters()])


def _shapes(model: torch.nn.Module) -> tuple[object, ...]:
    return tuple((n, tuple(p.shape), p.requires_grad) for n, p in model.named_parameters())


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    scale = max(float(other.abs().max()), 1e-12)
    return bool((one - other).abs().max() <= _CLOSE * scale)


def _mixes(why: str) -> Refusal:
    return Refusal("mixes-examples", f"the model cannot be trained privately: {why}")
