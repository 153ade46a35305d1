"""The models that are trained, as workloads; and how each is scored, in points of 0 to 100."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import skip_init

from fedflow.learning import randhie
from fedflow.learning.evaluation import model_scores, score_of_rows
from fedflow.learning.model_file import Arrays
from fedflow.learning.plan_sections import EvaluationSection
from fedflow.learning.public_weights import public_model
from fedflow.learning.workload import PersonData, Persons, Workload
from fedflow.workloads.image import TanhCnn

DIGITS = 10


class Scored:
    """What the benchmark's own workloads share: one row per unit, data from memory only."""

    unit_column = "row"
    score_range = (0.0, 1.0)

    def __init__(self, name: str, reference_persons: int) -> None:
        self.name = name
        self.reference_persons = reference_persons

    def load(self, path: str | Path) -> PersonData:
        raise NotImplementedError(f"{path}: a benchmark's data come from benchmarks.data")


class Classifier(Scored):
    """A workload whose target is one of ten classes, as a float; scored by accuracy."""

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats: ``scores`` [B, R, 10], ``y`` [B, R] to [B, R]."""
        flat = torch.nn.functional.cross_entropy(
            scores.flatten(0, -2), y.flatten().long(), reduction="none"
        )
        return flat.view(y.shape)


class Linear(Classifier):
    """Softmax regression on ``inputs`` features; starts at zero."""

    def __init__(self, name: str, reference_persons: int, inputs: int) -> None:
        super().__init__(name, reference_persons)
        self.inputs = inputs

        self._model: torch.nn.Module = skip_init(torch.nn.Linear, inputs, DIGITS)  # type: ignore[no-untyped-call]
        for parameter in self._model.parameters():
            torch.nn.init.zeros_(parameter)

    def build_model(self) -> torch.nn.Module:
        return copy.deepcopy(self._model)


class Cnn(Classifier):
    """:class:`~fedflow.workloads.image.TanhCnn` from weights that follow from ``seed``."""

    def __init__(self, name: str, reference_persons: int, seed: int = 0) -> None:
        super().__init__(name, reference_persons)
        self.seed = seed

    def build_model(self) -> torch.nn.Module:
        return public_model(TanhCnn, self.seed)


class Regression(Scored):
    """Linear regression on ``inputs`` features, squared error; starts at zero."""

    def __init__(self, name: str, reference_persons: int, inputs: int) -> None:
        super().__init__(name, reference_persons)
        self.inputs = inputs

    def build_model(self) -> torch.nn.Module:
        return randhie.LogisticRegression(self.inputs + 1)

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (scores - y) ** 2 / 2.0


class RandHie(randhie.RandHie):
    """The project's own workload, with another divisor."""

    def __init__(self, reference_persons: int) -> None:
        self.reference_persons = reference_persons


def rows(x: NDArray[np.float32], y: NDArray[np.number]) -> Persons:
    """N units of one row each, from features [N, F] and targets [N]."""
    return Persons(
        np.ascontiguousarray(x, np.float32)[:, None],
        y.astype(np.float32)[:, None],
        np.ones((len(x), 1), np.bool_),
        tuple(str(i) for i in range(len(x))),
    )


def points(workload: Workload, test: Persons, arrays: Arrays) -> float:
    """The score of a model: accuracy in per cent, 100 times the AUC, or 100 times R squared."""
    judged = None
    if isinstance(workload, randhie.RandHie):
        judged = EvaluationSection(every=1, metric="auc", bins=10, noise_multiplier=1.0)
    elif isinstance(workload, Classifier):
        judged = EvaluationSection(every=1, metric="accuracy", noise_multiplier=1.0)
    scores, y = model_scores(workload, arrays, test), torch.from_numpy(test.y)
    if judged is not None:
        return 100.0 * score_of_rows(scores, test.y, test.mask, judged)
    left = float(((scores - y) ** 2).sum())
    return 100.0 * (1.0 - left / float(((y - y.mean()) ** 2).sum()))
