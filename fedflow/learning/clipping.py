"""The sum of clipped per-unit gradients: what DP-SGD and the summed gradient both release, noised.

Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016), Algorithm 1, lines 6-8. A unit's
gradient is that of the mean loss over its rows, over all trainable parameters together; it is
scaled by min(1, C / (norm + 1e-6)), as Opacus does it, and added. Two methods:

* ``hooks``: Opacus' ``GradSampleModule`` writes every unit's gradient out. Works for every layer
  that Opacus knows or that ``torch.func`` can differentiate.
* ``ghost``: one backward pass that stops at the layers' outputs. The gradient of a linear layer
  with one row per unit is an outer product b aᵀ: its norm is |b| |a| (Goodfellow, "Efficient
  Per-Example Gradient Computations", arXiv:1510.01799) and the clipped sum is one matrix product,
  so it is never written out. Other layers are, by Opacus' own formulas ("book-keeping" in Bu et
  al., "Differentially Private Optimization on Large Foundation Models", ICML 2023).

``auto`` takes ghost wherever it gives the right sum and hooks where only that does, by a
trial on synthetic data (:mod:`fedflow.learning.unit_check`); ghost does less work on every layer,
so nothing has to be timed.

Opacus' own ghost clipping is not used. It takes the norm in one backward pass and adds what a
second one computes anew, and for rows of a sequence it takes the norm from products of Gram
matrices. When large rows of one unit nearly cancel, rounding makes that norm too small, by more
than the clipping norm itself, and the unit then adds more than it may. Here what is added is what
was measured. It is also slower: a second pass, and gradients of weights that nobody reads.
Opacus' BatchMemoryManager is not used either: it wants to own the data loader and its sampler. A
large batch is cut here instead, and the sums of the parts are added in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal, Protocol

import torch
from opacus.grad_sample import GradSampleModule
from opacus.utils.module_utils import trainable_modules
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedflow.errors import Misuse
from fedflow.learning.batches import Batch, unit_losses
from fedflow.learning.unit_check import UnitShape, UnsuitableModel, check_model, usable_methods
from fedflow.learning.workload import Persons, Workload, trained_parameters

__all__ = ["Clipper", "Method", "check_model", "check_trainable"]

Method = Literal["hooks", "ghost"]
Parameter = torch.Tensor  #: of a model; found by identity

#: Opacus' formulas for a layer's per-example gradients, by layer type.
_FORMULAS: dict[type[torch.nn.Module], Any] = GradSampleModule.GRAD_SAMPLERS
#: Layers whose formula does not stand alone: they are called once per time step, or take offsets.
_ENTANGLED = ("RNNLinear", "SequenceBias", "EmbeddingBag")


class Clipper:
    """Clips and adds the gradients of units of one workload's ``model``, which it never steps.

    ``max_physical_batch`` units at most are in one forward pass; it bounds memory only. Refusal
    "mixes-examples" (also at the first batch) for a model whose units have no gradients of
    their own, see :func:`check_model`.
    """

    def __init__(
        self,
        workload: Workload,
        model: torch.nn.Module,
        *,
        clipping_norm: float,
        max_physical_batch: int,
        method: Literal["auto", "hooks", "ghost"] = "auto",
    ) -> None:
        if not 0 < clipping_norm < float("inf") or max_physical_batch < 1:
            raise Misuse("clipping needs a positive norm and at least one unit in a batch")
        check_model(model)
        for layer in model.modules():
            if getattr(layer, "inplace", False) is True:
                # or it overwrites the output whose gradient is asked for
                layer.inplace = False  # type: ignore[assignment]
        self._workload = workload
        self._model = model
        self._norm = clipping_norm
        self._largest = max_physical_batch
        self._wanted = method
        self._engine: Engine | None = None
        #: parameter -> where it lies in the flat sum, in the order of ``model_file.flatten``
        self._slices: dict[Parameter, slice] = {}
        at = 0
        for _, parameter in trained_parameters(model):
            self._slices[parameter] = slice(at, at + parameter.numel())
            at += parameter.numel()
        self.dimension = at

    @property
    def parameters(self) -> list[Parameter]:
        """What is trained, in the order of the flat sum."""
        return list(self._slices)

    @property
    def method(self) -> Method | None:
        """The method in use; None before the first batch."""
        return self._engine.method if self._engine else None

    def clipped_sum(self, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The sum over units of their clipped gradients, float64[d], flat as a model file is.

        ``x`` float32[B, R, F], ``y`` float32[B, R, ..], ``weights`` float32[B, R] as in
        :data:`fedflow.learning.batches.Batch`; B may be 0. A unit whose gradient, or its norm, is
        not finite adds zero: otherwise it would turn the release into not-a-number, which shows
        that it took part.

        float64, because a sum in float32 of very many units would move by more than the slack of
        2^-10 C when one unit comes or goes.
        """
        if self._engine is None:  # for an empty batch as well: a refusal tells nothing of the data
            self._engine = self._choose(UnitShape.of(x, y))
        total = torch.zeros(self.dimension, dtype=torch.float64)
        for at in range(0, len(x), self._largest):
            end = at + self._largest
            part = x[at:end], y[at:end], weights[at:end]
            for parameter, clipped in _clip(self._engine.gradients(part), self._norm):
                total[self._slices[parameter]] += clipped.flatten()
        return total

    def set_gradient(self, gradient: torch.Tensor) -> None:
        """Give every trained parameter its part of ``gradient``, float[d], for an optimiser."""
        for parameter, where in self._slices.items():
            parameter.grad = gradient[where].view_as(parameter).to(parameter.dtype)

    def _choose(self, shape: UnitShape) -> Engine:
        trials: dict[Method, Any] = {"ghost": _tried(Ghost), "hooks": _tried(Hooks)}
        usable = usable_methods(self._workload, self._model, shape, trials)
        if self._wanted != "auto" and self._wanted not in usable:
            raise Misuse(f"this model cannot be clipped by {self._wanted}")
        method = usable[0] if self._wanted == "auto" else self._wanted
        return ENGINES[method](self._workload, self._model)


def check_trainable(workload: Workload, persons: Persons, unit: str) -> None:
    """Refusal, as the first step on ``persons`` would raise it; of them it takes the shape only."""
    rows = 1 if unit == "record" else persons.x.shape[1]
    x, y = (torch.zeros(0, rows, *array.shape[2:]) for array in (persons.x, persons.y))
    clipper = Clipper(workload, workload.build_model(), clipping_norm=1.0, max_physical_batch=1)
    clipper.clipped_sum(x, y, torch.zeros(0, rows))


def _tried(engine: type[Engine]) -> Any:
    """The clipped sum by parameter as a function of workload, model, batch and norm."""

    def trial(
        workload: Workload, model: torch.nn.Module, batch: Batch, norm: float
    ) -> dict[Parameter, torch.Tensor]:
        return dict(_clip(engine(workload, model).gradients(batch), norm))

    return trial


class PerUnit(Protocol):
    """The gradients of one parameter for each of B units."""

    def norms(self) -> torch.Tensor:
        """L2 norm per unit, [B]; not finite where the gradient is not, or overflows."""

    def without(self, broken: torch.Tensor) -> PerUnit:
        """The same with zero for the units where ``broken`` (bool[B]) is true."""

    def combined(self, factors: torch.Tensor) -> torch.Tensor:
        """The sum over units of ``factors`` ([B]) times gradient, flat."""


class Written:
    """Gradients written out, [B, P]."""

    def __init__(self, gradients: torch.Tensor) -> None:
        self.gradients = gradients

    def norms(self) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(self.gradients, dim=1)
        return norms

    def without(self, broken: torch.Tensor) -> Written:
        return Written(self.gradients.masked_fill(broken.unsqueeze(1), 0.0))

    def combined(self, factors: torch.Tensor) -> torch.Tensor:
        return factors @ self.gradients


class Outer:
    """Gradients b aᵀ of a weight matrix: ``b`` [B, O], ``a`` [B, I]."""

    def __init__(self, b: torch.Tensor, a: torch.Tensor) -> None:
        self.b, self.a = b, a

    def norms(self) -> torch.Tensor:
        # 0 times infinity is not a number here, as it is in the gradient itself
        b, a = (torch.linalg.vector_norm(part, dim=1) for part in (self.b, self.a))
        norms: torch.Tensor = b * a
        return norms

    def without(self, broken: torch.Tensor) -> Outer:
        where = broken.unsqueeze(1)
        return Outer(self.b.masked_fill(where, 0.0), self.a.masked_fill(where, 0.0))

    def combined(self, factors: torch.Tensor) -> torch.Tensor:
        return ((self.b * factors.unsqueeze(1)).t() @ self.a).flatten()


Gradients = list[tuple[Parameter, PerUnit]]


def _clip(gradients: Gradients, norm: float) -> Iterator[tuple[Parameter, torch.Tensor]]:
    """Each parameter with its part of the clipped sum, flat."""
    norms = torch.stack([each.norms() for _, each in gradients]).norm(dim=0)
    broken = ~torch.isfinite(norms)
    factors = (norm / (norms + 1e-6)).clamp(max=1.0).masked_fill(broken, 0.0)
    any_broken = bool(broken.any())
    for parameter, each in gradients:
        if any_broken:  # their factor is zero, but zero times infinity is not
            each = each.without(broken)
        yield parameter, each.combined(factors)


class Engine(Protocol):
    """Computes per-unit gradients of a model."""

    method: Method

    def __init__(self, workload: Workload, model: torch.nn.Module) -> None: ...

    def gradients(self, batch: Batch) -> Gradients:
        """The gradient of every unit's mean loss, by trained parameter."""


class Hooks:
    """Per-unit gradients by Opacus' ``GradSampleModule``."""

    method: Method = "hooks"

    def __init__(self, workload: Workload, model: torch.nn.Module) -> None:
        self._workload = workload
        # not strict: it would refuse constant buffers; those that change are found by the trial
        self._model = GradSampleModule(model, loss_reduction="sum", strict=False)

    def gradients(self, batch: Batch) -> Gradients:
        with warnings.catch_warnings():
            # Inputs are data and need no gradient: what the warning says is what is wanted.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            torch.autograd.backward(unit_losses(self._workload, self._model, batch).sum())
        found: Gradients = []
        for parameter in self._model.parameters():
            gradient = getattr(parameter, "grad_sample", None)
            parameter.grad = None
            if gradient is not None:
                parameter.grad_sample = None
                found.append((parameter, Written(_by_unit(gradient, len(batch[0])))))
        return found


class Ghost:
    """Per-unit gradients from each layer's input and the gradient at its output."""

    method: Method = "ghost"

    def __init__(self, workload: Workload, model: torch.nn.Module) -> None:
        self._workload, self._model = workload, model
        self._layers = [layer for _, layer in trainable_modules(model)]
        for layer in self._layers:
            if type(layer) not in _FORMULAS or type(layer).__name__ in _ENTANGLED:
                raise UnsuitableModel(f"no formula for a layer {type(layer).__name__}")

    def gradients(self, batch: Batch) -> Gradients:
        seen: list[tuple[torch.nn.Module, torch.Tensor, GradientEdge]] = []

        def see(layer: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            # The edge, not the tensor: what follows may change the tensor in place.
            seen.append((layer, given[0].detach(), get_gradient_edge(out)))

        with ExitStack() as hooks:
            for layer in self._layers:
                hooks.enter_context(_removed(layer.register_forward_hook(see)))
            total = unit_losses(self._workload, self._model, batch).sum()
        if len({id(layer) for layer, _, _ in seen}) != len(seen):
            raise UnsuitableModel("a layer is used twice in one forward pass")
        slopes = torch.autograd.grad(total, [edge for _, _, edge in seen], allow_unused=True)
        found: Gradients = []
        with torch.no_grad():
            for (layer, given, _), slope in zip(seen, slopes, strict=True):
                if slope is not None:
                    found += _of_layer(layer, given, slope, len(batch[0]))
        if len({parameter for parameter, _ in found}) != len(found):
            raise UnsuitableModel("two layers share a parameter")
        return found


ENGINES: dict[Method, type[Engine]] = {"hooks": Hooks, "ghost": Ghost}


class _removed:  # noqa: N801
    """Removes a hook at the end of a ``with``."""

    def __init__(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        self._handle = handle

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def _of_layer(
    layer: torch.nn.Module, given: torch.Tensor, slope: torch.Tensor, units: int
) -> Gradients:
    """The gradients of one layer's trained parameters."""
    if type(layer) is torch.nn.Linear and given.numel() == units * layer.in_features:
        b, a = slope.reshape(units, -1), given.reshape(units, -1)
        found: Gradients = [(layer.weight, Outer(b, a))] if layer.weight.requires_grad else []
        if layer.bias is not None and layer.bias.requires_grad:
            found.append((layer.bias, Written(b)))
        return found
    written = _FORMULAS[type(layer)](layer, [given], slope)
    return [(p, Written(_by_unit(g, units))) for p, g in written.items() if p.requires_grad]


def _by_unit(gradients: torch.Tensor, units: int) -> torch.Tensor:
    """Gradients per unit or per row of units, flat per unit: [B, P]."""
    flat = gradients.flatten(1) if gradients.dim() > 1 else gradients.unsqueeze(1)
    if len(flat) == units:
        return flat
    if len(flat) % units:
        raise UnsuitableModel(f"{len(flat)} gradients for {units} units")
    return flat.reshape(units, -1, flat.shape[1]).sum(dim=1)
