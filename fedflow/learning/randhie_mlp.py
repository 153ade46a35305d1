"""The task of :mod:`fedflow.learning.randhie` for a body and a head that may stay at the sites.

The body makes a few features of a person-year that all sites share; the head weighs them. Sites
that differ in how people there use physicians may each keep a head of their own.
"""

from __future__ import annotations

import torch

from fedflow.learning.public_weights import public_model
from fedflow.learning.randhie import FEATURES, RandHie

WIDTH = 16


class BodyAndHead(torch.nn.Module):
    """One hidden layer, ``body``, and one linear score, ``head``."""

    def __init__(self, inputs: int, width: int = WIDTH) -> None:
        super().__init__()
        self.body = torch.nn.Linear(inputs, width)
        self.head = torch.nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., F] to [..]."""
        scores: torch.Tensor = self.head(torch.tanh(self.body(x)))
        return scores.squeeze(-1)


class RandHieMlp(RandHie):
    """The workload ``randhie-mlp``: rows, split and loss of ``randhie``."""

    name = "randhie-mlp"

    def build_model(self) -> torch.nn.Module:
        """A small network; its initial weights are drawn from a public seed."""
        return public_model(lambda: BodyAndHead(FEATURES))


workload = RandHieMlp()
