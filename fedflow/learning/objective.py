"""What a plan changes in a workload's loss: classes that weigh more, and labels that may be wrong.

Class weights multiply a row's loss by a public number of its class, so that a rare class is not
drowned. The numbers are in the plan; where nobody knows them, they come from a histogram of labels
that was itself a noised secure sum.

``training.robust_loss = q`` makes of a row's loss ``l = -log p`` the generalised cross entropy
``(1 - p^q) / q = (1 - exp(-q l)) / q`` (Zhang and Sabuncu, NeurIPS 2018): near 0 it is the loss
itself, and never over 1/q. The gradient of a row is that of its loss times p^q, so the model is
pulled little by what it thinks impossible, which is where wrong labels are. For squared errors it
is the Welsch loss. Any loss that is never negative will do.

Both come before clipping: what one unit contributes is bounded as ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fedflow.errors import Refusal
from fedflow.learning.plan import Plan
from fedflow.learning.workload import PersonData, Workload


def objective(workload: Workload, plan: Plan) -> Workload:
    """``workload`` with the loss that ``plan`` trains by; itself where the plan changes nothing.

    Also itself where it has ``is_objective``: its loss is what is to be trained by already.
    """
    training = plan.training
    plain = not training.class_weights and training.robust_loss is None
    if plain or getattr(workload, "is_objective", False):
        return workload
    return Objective(workload, training.class_weights, training.robust_loss)


class Objective:
    """``inner`` with another loss. For training only: scores are judged as ever."""

    is_objective = True

    def __init__(
        self, inner: Workload, class_weights: tuple[float, ...], robust_loss: float | None
    ) -> None:
        self.inner = inner
        self.name, self.unit_column = inner.name, inner.unit_column
        self.reference_persons, self.score_range = inner.reference_persons, inner.score_range
        self._weights = torch.tensor(class_weights, dtype=torch.float32)
        self._q = robust_loss

    def __getattr__(self, name: str) -> Any:
        """What only some workloads have, such as ``vocabulary``."""
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def build_model(self) -> torch.nn.Module:
        """The inner workload's."""
        return self.inner.build_model()

    def load(self, path: str | Path) -> PersonData:
        """The inner workload's."""
        return self.inner.load(path)

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Loss per row, [B, R].

        Refusal ``workload-unsuitable`` where rows have no single class, or as many classes as the
        plan has weights: that follows from public shapes. A label that is no class counts as the
        nearest one; to refuse it would tell of a unit.
        """
        losses = self.inner.loss(scores, y)
        if self._q is not None:
            losses = -torch.expm1(-self._q * losses) / self._q
        if not len(self._weights):
            return losses
        classes = scores.shape[-1] if scores.ndim > y.ndim else 2
        if y.shape != losses.shape or classes != len(self._weights):
            raise Refusal(
                "workload-unsuitable",
                f"training.class_weights has {len(self._weights)} numbers, and workload"
                f" {self.name!r} has rows of one label each with {classes} classes"
                if y.shape == losses.shape
                else f"workload {self.name!r} has several labels in a row, which"
                " training.class_weights cannot weigh",
            )
        return losses * self._weights[y.long().clamp(0, classes - 1)]
