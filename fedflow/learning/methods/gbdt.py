"""Gradient-boosted trees: each round a batch of random trees takes a Newton step down the loss.

Maddock, Cormode, Wang, Maple and Jha, "Federated boosted decision trees with differential privacy"
(CCS 2022), with batches of trees per round as there, and with momentum (Biau, Cadre and Rouviere,
"Accelerated gradient boosting", 2019): rounds are what costs budget. Many trees of a batch see the
same effect, each a part of it, and their mean is a short step: ``strategy.server_learning_rate`` is
the factor on it and may well be over 1. See :mod:`fedflow.learning.methods.trees`.
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
    RowSet,
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

#: Memory tensor: what every leaf was moved by in the last round.
VELOCITY = "~velocity"


class Gbdt:
    """``strategy.name = "gbdt"``: d = 2 * trees in a round * 2^depth."""

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        inputs_of(workload, plan)
        is_binary(workload)
        _, batch, leaves = sizes(plan)
        return 2 * batch * leaves

    def memory_sizes(self, plan: Plan, dimension: int) -> dict[str, int]:
        """What each leaf of all trees adds to a score, with momentum also its last move."""
        trees, _, leaves = sizes(plan)
        out = {LEAVES: trees * leaves, TREES: 1}
        return out | ({VELOCITY: trees * leaves} if plan.strategy.server_momentum else {})

    def first_sums(self, workload: Workload, plan: Plan) -> NDArray[np.float32]:
        """Nothing summed."""
        return np.zeros(self.dimension(workload, plan), np.float32)

    def unit_values(self, workload: Workload, units: Persons, state: Arrays, plan: Plan) -> Real:
        """Mean gradient and curvature of a unit's rows, in the leaves they are in."""
        inputs = inputs_of(workload, plan)
        rows = rows_of(workload, units, inputs)
        said, done = said_by(rows.x, state, inputs, plan), int(state[TREES][0])
        gradient, curvature = self.derivatives(workload, rows, said)
        return summed_by_leaf(rows, len(units), gradient, curvature, inputs, plan, done)

    def step(self, sums: NDArray[np.float32], memory: Memory, total: Real, plan: Plan) -> None:
        """The new trees' leaves; with momentum all leaves move on as they last did."""
        part = take_batch(memory, plan)
        shared, rest = newton(total, plan)
        rate, batch = np.float64(plan.strategy.server_learning_rate), np.float64(sizes(plan)[1])
        move = (shared + rate * rest) / batch
        sums[:] = total
        leaves = memory[LEAVES]
        if VELOCITY not in memory:
            leaves[part] = move
            return
        velocity = memory[VELOCITY]
        velocity[:] = np.float64(plan.strategy.server_momentum) * velocity.astype(np.float64)
        velocity[part] = move
        leaves[:] = leaves.astype(np.float64) + velocity.astype(np.float64)

    def judged(
        self, workload: Workload, persons: Persons, state: Arrays, plan: Plan
    ) -> tuple[Real, NDArray[np.float32]]:
        """Scores and targets, [P, R]; see :func:`~fedflow.learning.methods.base.scores_of`."""
        inputs = inputs_of(workload, plan)
        rows = rows_of(workload, persons, inputs)
        out = np.zeros(persons.mask.shape)
        out[persons.mask] = self.predicted(workload, said_by(rows.x, state, inputs, plan))
        return scores_of(out, *needs_target(workload), plan), persons.y

    def derivatives(self, workload: Workload, rows: RowSet, said: Real) -> tuple[Real, Real]:
        """Minus the loss's gradient by the score ``said``, and its curvature, of each row [N]."""
        if not is_binary(workload):
            return of_values(rows, said)
        probability = 0.5 + 0.5 * np.tanh(said / 2)
        return (rows.target > 0) - probability, probability * (1 - probability)

    def predicted(self, workload: Workload, said: Real) -> Real:
        """What scores [N] mean, the bounds of the target at -1 and 1."""
        means = np.tanh(said / 2) if is_binary(workload) else np.clip(said / 2, -1.0, 1.0)
        return np.asarray(means, np.float64)


def of_values(rows: RowSet, said: Real) -> tuple[Real, Real]:
    """The derivatives of an eighth of the squared error, bounds of the target at -2 and 2."""
    return CURVATURE * (2 * rows.target - said), np.full(len(said), CURVATURE)
