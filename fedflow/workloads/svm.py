"""A linear support vector machine on the rows of workload ``randhie``.

The hinge loss asks for a margin of one on the right side of the line (Cortes and Vapnik, "Support-
vector networks", 1995); its gradient is never longer than a row's features, which suits clipping.
Data: the CSV of ``randhie`` (``fedflow/data/randhie.md``), and the same persons are held out.
"""

from __future__ import annotations

import torch

from fedflow.learning.randhie import RandHie


class Svm(RandHie):
    """The workload ``svm``. Scores are distances from the line, not log odds; they rank as well."""

    name = "svm"
    score_range = (0.2, 0.8)  # of the logistic function of a margin: most are within -1.4 to 1.4

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """How far a row is from its margin: max(0, 1 - s) with s signed by the label."""
        return torch.relu(1.0 - (2.0 * y - 1.0) * scores)


workload = Svm()
