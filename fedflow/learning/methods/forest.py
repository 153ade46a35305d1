"""A random forest: the mean over random trees of what their leaves hold, from noised counts.

Fletcher and Islam, "Differentially private random decision forests using smooth sensitivity"
(Expert Systems with Applications, 2017): what a leaf's people are takes all of the budget, where
trees divide none. Leaves here hold sums of targets and of people, so a forest predicts shares of a
class as well as values. No tree depends on another: rounds only divide the trees, and one round
with all of them costs as much. See :mod:`fedflow.learning.methods.trees`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedflow.learning.methods.base import Memory, Real, needs_target, scores_of
from fedflow.learning.methods.trees import (
    CURVATURE,
    LEAVES,
    TREES,
    inputs_of,
    is_binary,
    newton,
    rows_of,
    said_by,
    sizes,
    summed_by_leaf,
    take_batch,
)
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload


class Forest:
    """``strategy.name = "forest"``: d = 2 * trees in a round * 2^depth."""

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        inputs_of(workload, plan)
        is_binary(workload)
        _, batch, leaves = sizes(plan)
        return 2 * batch * leaves

    def memory_sizes(self, plan: Plan, dimension: int) -> dict[str, int]:
        """What each leaf of all trees predicts, bounds of the target at -2 and 2."""
        trees, _, leaves = sizes(plan)
        return {LEAVES: trees * leaves, TREES: 1}

    def first_sums(self, workload: Workload, plan: Plan) -> NDArray[np.float32]:
        """Nothing summed."""
        return np.zeros(self.dimension(workload, plan), np.float32)

    def unit_values(self, workload: Workload, units: Persons, state: Arrays, plan: Plan) -> Real:
        """A unit's mean target and its weight of 1, both by leaf and in quarters."""
        inputs = inputs_of(workload, plan)
        rows = rows_of(workload, units, inputs)
        curvature = np.full(len(rows.weight), CURVATURE)
        gradient, done = CURVATURE * 2 * rows.target, int(state[TREES][0])
        return summed_by_leaf(rows, len(units), gradient, curvature, inputs, plan, done)

    def step(self, sums: NDArray[np.float32], memory: Memory, total: Real, plan: Plan) -> None:
        """The new trees' leaves: the mean of all, and what is left of a leaf's own beyond it."""
        part = take_batch(memory, plan)
        shared, rest = newton(total, plan)
        memory[LEAVES][part] = shared + rest
        sums[:] = total

    def judged(
        self, workload: Workload, persons: Persons, state: Arrays, plan: Plan
    ) -> tuple[Real, NDArray[np.float32]]:
        """Scores and targets, [P, R]; see :func:`~fedflow.learning.methods.base.scores_of`."""
        inputs = inputs_of(workload, plan)
        said = said_by(rows_of(workload, persons, inputs).x, state, inputs, plan)
        out = np.zeros(persons.mask.shape)
        out[persons.mask] = np.clip(said / max(2 * float(state[TREES][0]), 1.0), -1, 1)
        return scores_of(out, *needs_target(workload), plan), persons.y
