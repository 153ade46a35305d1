"""Models of every sort that a clipping engine meets, and a loop over units as the oracle."""

import numpy as np
import torch
from torch import nn

from fedflow.learning.workload import trained_parameters

ROWS, FEATURES = 3, 36


class Task:
    """A workload that is nothing but a model and a loss; ``y`` is 0 or 1."""

    name = "made-up"
    unit_column = "unit"
    reference_persons = 100
    score_range = (0.0, 1.0)

    def __init__(self, build, loss=None):
        self.build_model = build
        self._loss = loss

    def loss(self, scores, y):
        if self._loss:
            return self._loss(scores, y)
        return nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")


class Rows(nn.Module):
    """Applies ``inner`` to rows: [B, R, F] or, with ``flat``, [B * R, *shape]; scores [B, R]."""

    def __init__(self, *inner, flat=None):
        super().__init__()
        self.inner = nn.Sequential(*inner)
        self.flat = flat
        with torch.no_grad():
            for number, p in enumerate(self.inner.parameters()):
                wave = torch.arange(p.numel(), dtype=torch.float64).add(number).mul(1.7).sin()
                p.copy_((0.4 * wave).view_as(p))

    def forward(self, x):
        if self.flat is None:
            return self.inner(x).squeeze(-1)
        scores = self.inner(x.reshape(-1, *self.flat))
        return scores.reshape(x.shape[:2])


class Scale(nn.Module):
    """A layer that Opacus has no formula for."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, FEATURES))

    def forward(self, x):
        return torch.tanh(x * self.factor)


class Twice(nn.Module):
    """One layer used two times."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class Constant(nn.Module):
    """A constant buffer beside weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, 4)
        self.register_buffer("shift", torch.linspace(-1, 1, FEATURES))

    def forward(self, x):
        return self.layer(x + self.shift)


def logistic():
    return Rows(nn.Linear(FEATURES, 1))


def perceptron():
    return Rows(nn.Linear(FEATURES, 16), nn.ReLU(inplace=True), nn.Linear(16, 1))


def convolution():
    return Rows(
        nn.Conv2d(1, 4, 3, padding=1, groups=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Linear(16, 1),
        flat=(1, 6, 6),
    )


def custom():
    return Rows(Scale(), nn.Linear(FEATURES, 1))


def tied():
    return Rows(Twice(), nn.Linear(FEATURES, 1))


def buffered():
    return Rows(Constant(), nn.Tanh(), nn.Linear(4, 1))


def frozen():
    model = perceptron()
    model.inner[0].weight.requires_grad_(False)
    return model


MODELS = (logistic, perceptron, convolution, custom, tied, buffered, frozen)


def units(count, rows=ROWS, seed=0, scale=1.0):
    """A batch of units with up to ``rows`` rows: x, y, weights."""
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(count, rows, FEATURES))).astype(np.float32)
    y = rng.integers(0, 2, (count, rows)).astype(np.float32)
    mask = np.arange(rows) < rng.integers(1, rows + 1, count)[:, None]
    weights = (mask / mask.sum(1, keepdims=True)).astype(np.float32)
    x[~mask] = 0
    return tuple(torch.from_numpy(a) for a in (x, y, weights))


def oracle(task, model, batch, norm):
    """The clipped sum by a loop over units in float64, and its terms, one gradient each."""
    exact = task.build_model()
    exact.load_state_dict(model.state_dict())
    exact.double()
    named = trained_parameters(exact)
    terms = []
    for x, y, weights in zip(*(t.double() for t in batch), strict=True):
        real = weights > 0
        losses = task.loss(exact(x[real][None]), y[real][None])
        gradients = torch.autograd.grad(losses.mean(), [p for _, p in named])
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        terms.append(flat * min(1.0, norm / float(flat.norm())))
    return torch.stack(terms).sum(dim=0), torch.stack(terms)
