"""A random forest from noised counts, and forests that take up what earlier ones left over.

Fletcher and Islam, "Differentially private random decision forests using smooth sensitivity"
(Expert Systems with Applications, 2017): what a leaf's people are takes all of the budget, where
trees divide none. Leaves here hold sums of targets and of people, so a forest predicts shares of a
class as well as values. A plan of one round is such a forest, the mean of its trees.

Trees that are not fitted to the data count what correlated features have in common once for each of
them. So each further round is a forest of what the ones before it leave over, with the factor
``strategy.server_learning_rate`` (Ghosal and Hooker, "Boosting random forests to reduce bias",
Journal of Computational and Graphical Statistics, 2021). See :mod:`fedflow.learning.methods.trees`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedflow.learning.methods.base import Real
from fedflow.learning.methods.gbdt import Gbdt, of_values
from fedflow.learning.methods.trees import RowSet

if TYPE_CHECKING:
    from fedflow.learning.workload import Workload


class Forest(Gbdt):
    """``strategy.name = "forest"``: as :class:`Gbdt`, with the squared error for classes too."""

    def derivatives(self, workload: Workload, rows: RowSet, said: Real) -> tuple[Real, Real]:
        """See :class:`Gbdt`: in the first round half the target and a quarter, for each row."""
        return of_values(rows, said)

    def predicted(self, workload: Workload, said: Real) -> Real:
        """See :class:`Gbdt`: with two classes a share, as with values."""
        return np.asarray(np.clip(said / 2, -1.0, 1.0), np.float64)
