"""A site's private local training: DP-SGD, where one example is one unit of privacy.

Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016), Algorithm 1, clipped by
:mod:`fedflow.learning.clipping`. Each step is one Poisson-subsampled Gaussian mechanism under
adding or removing a unit: a person, or with ``privacy.unit = "record"`` one row. Choices:

* All rows of a person make one example: their mean loss, one gradient, clipped once.
* Batches are Poisson samples at the plan's public rate, drawn from the cryptographic generator. The
  amplification they give holds only while who was sampled stays secret, so nothing else leaves:
  no loss, no batch size, no count.
* The noisy sum is divided by ``sample_rate * workload.reference_persons``, a public constant. The
  true batch size, or this site's own number of persons, would be a release.
* Noise comes from the cryptographic generator in float64 (Opacus offers only torch generators).
  The optimiser sees nothing but the noisy gradient, so that any optimiser is post-processing; so is
  what :class:`Steering` adds to it.

Rounding of floating-point sums is not covered by the proof; see SECURITY.md.
"""

from __future__ import annotations

import numpy as np
import torch
import torch._dynamo  # torch.optim imports it at first use: 0.8 s better spent before a fork
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Aborted
from fedflow.learning.batches import poisson_batches, unit_losses
from fedflow.learning.clipping import Clipper
from fedflow.learning.local_layers import is_local
from fedflow.learning.model_file import Arrays, flatten
from fedflow.learning.objective import objective
from fedflow.learning.plan import Plan
from fedflow.learning.sparse import Places
from fedflow.learning.workload import (
    PersonData,
    Workload,
    model_with,
    trained_parameters,
    units_of,
)
from fedflow.privacy.noise import gaussian


def train_private(
    workload: Workload,
    data: PersonData,
    arrays: Arrays,
    plan: Plan,
    csprng: Csprng,
    *,
    correction: NDArray[np.float64] | None = None,
    places: Places | None = None,
) -> NDArray[np.float32]:
    """The change of the model, float32[d], after the plan's private local steps on ``data.train``.

    ``arrays`` has all that is trained, local layers too, and the change is of all of it, in the
    order of names. ``correction`` is added to every step's gradient of what travels (SCAFFOLD's
    c - c_i), float64 of that size. With ``places`` only these coordinates of what travels change
    (:mod:`fedflow.learning.sparse`).

    Its cost is ``plan.local_steps`` Poisson-subsampled Gaussian events at the plan's rate and
    noise, for all that is computed from the noised steps. ``arrays`` is not changed. Aborted
    "diverged" when the result is not finite (a fact about noised steps only); Refusal as
    :class:`~fedflow.learning.clipping.Clipper` raises it.
    """
    privacy, workload = plan.privacy, objective(workload, plan)
    model = model_with(workload, arrays)
    optimizer = _optimizer(model, plan)
    clipper = Clipper(
        workload,
        model,
        clipping_norm=privacy.clipping_norm,
        max_physical_batch=plan.training.max_physical_batch,
    )
    step = PrivateStep(
        clipper,
        optimizer,
        stddev=privacy.noise_multiplier * privacy.clipping_norm,
        divisor=privacy.sample_rate * workload.reference_persons,
        csprng=csprng.child("noise"),
        steering=Steering(model, plan, correction, places),
    )
    units = units_of(data.train, privacy.unit)
    sampling = csprng.child("sampling")
    for batch in poisson_batches(units, plan.local_steps, privacy.sample_rate, sampling):
        step(*batch)
    return _change(model, arrays)


class PrivateStep:
    """One step: clip and add, noise of standard deviation ``stddev``, divide, let the optimiser."""

    def __init__(
        self,
        clipper: Clipper,
        optimizer: torch.optim.Optimizer,
        *,
        stddev: float,
        divisor: float,
        csprng: Csprng,
        steering: Steering | None = None,
    ) -> None:
        self._steering = steering
        self._clipper = clipper
        self._optimizer = optimizer
        self._stddev = stddev
        self._divisor = divisor
        self._csprng = csprng

    def __call__(self, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> None:
        """Step on one batch, see :meth:`Clipper.clipped_sum`; an empty one is noised like any."""
        noisy = self._clipper.clipped_sum(x, y, weights)
        noisy += torch.from_numpy(gaussian(len(noisy), self._stddev, self._csprng))
        self._clipper.set_gradient(noisy / self._divisor)
        if self._steering is not None:
            self._steering()
        self._optimizer.step()


class Steering:
    """What a strategy adds to the gradient of every local step, from public or noised values only.

    FedProx (Li et al., MLSys 2020): ``mu (w - w_global)``, as of a loss ``mu/2 |w - w_global|²``.
    SCAFFOLD (Karimireddy et al., ICML 2020): the constant ``c - c_i``. A sparse update: nothing is
    left of the gradient of coordinates that are not in ``places``. ``model`` is to hold the global
    model when this is made. Layers that stay at the site are left to themselves: they have
    no global model to be pulled to.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        plan: Plan,
        correction: NDArray[np.float64] | None,
        places: Places | None = None,
    ) -> None:
        self._proximal = plan.training.proximal
        shared = [p for name, p in trained_parameters(model) if not is_local(name, plan)]
        self._anchors = {p: p.detach().clone() for p in shared}
        self._corrections: dict[torch.Tensor, torch.Tensor] = {}
        self._resting: dict[torch.Tensor, torch.Tensor] = {}
        at = 0
        for parameter in shared:
            end = at + parameter.numel()
            if correction is not None:
                part = torch.from_numpy(correction[at:end]).view_as(parameter)
                self._corrections[parameter] = part.to(parameter.dtype)
            if places is not None:
                rests = torch.ones(parameter.numel(), dtype=torch.bool)
                rests[torch.from_numpy(places[(places >= at) & (places < end)] - at)] = False
                self._resting[parameter] = rests.view_as(parameter)
            at = end

    def __call__(self) -> None:
        """Add it to the gradients that the model's parameters have now."""
        for parameter, anchor in self._anchors.items():
            if parameter.grad is None:
                continue
            if self._proximal:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self._proximal)
            if parameter in self._corrections:
                parameter.grad.add_(self._corrections[parameter])
            if parameter in self._resting:
                parameter.grad.masked_fill_(self._resting[parameter], 0.0)


def train_plain(
    workload: Workload,
    data: PersonData,
    arrays: Arrays,
    plan: Plan,
    csprng: Csprng,
    *,
    correction: NDArray[np.float64] | None = None,
    places: Places | None = None,
) -> NDArray[np.float32]:
    """As :func:`train_private`, without clipping and noise and divided by this data's own size.

    Not private: for a site whose whole change is clipped and noised, and for baselines.
    """
    workload = objective(workload, plan)
    model = model_with(workload, arrays)
    optimizer, steering = _optimizer(model, plan), Steering(model, plan, correction, places)
    units, rate = units_of(data.train, plan.privacy.unit), plan.privacy.sample_rate
    for batch in poisson_batches(units, plan.local_steps, rate, csprng):
        optimizer.zero_grad()
        torch.autograd.backward(unit_losses(workload, model, batch).sum() / (rate * len(units)))
        steering()
        optimizer.step()
    return _change(model, arrays)


def _optimizer(model: torch.nn.Module, plan: Plan) -> torch.optim.Optimizer:
    training = plan.training
    trained = [p for _, p in trained_parameters(model)]
    if training.optimizer == "adam":
        return torch.optim.Adam(trained, lr=training.learning_rate)
    return torch.optim.SGD(trained, lr=training.learning_rate, momentum=training.momentum)


def _change(model: torch.nn.Module, arrays: Arrays) -> NDArray[np.float32]:
    trained = {name: p.detach().cpu().numpy() for name, p in trained_parameters(model)}
    change = flatten(trained) - flatten(arrays)
    if not np.isfinite(change).all():
        raise Aborted("diverged", "local training diverged; lower the plan's learning_rate")
    return change
