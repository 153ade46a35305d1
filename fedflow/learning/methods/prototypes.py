"""Nearest neighbours without neighbours: regression on noised prototypes.

A nearest-neighbour rule needs the rows themselves, which nothing here may release. So clusters are
found as in :mod:`fedflow.learning.methods.kmeans`, and each also sums its rows' targets; what is
predicted is the mean target of the nearest prototypes, the more of it the nearer they are and the
more units they stand for (Bermejo and Cabestany, "Adaptive soft k-nearest-neighbour classifiers",
2000, on the rule; all of it only reads what was released).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse
from fedflow.learning.methods.base import (
    ROUNDS,
    SUMS,
    Memory,
    Real,
    from_unit,
    needs_features,
    needs_target,
    one_target,
    row_weights,
    scores_of,
    to_unit,
)
from fedflow.learning.methods.clusters import (
    by_cluster,
    clusters,
    count_weight,
    distances,
    divided,
    first_centres,
    least_count,
    moved,
    nearest,
)
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload

#: Added to squared distances: a row on a prototype does not follow it alone.
NEAR = 1e-3


class Prototypes:
    """``strategy.name = "prototypes"``: d = k * (F + 2).

    The tensor ``sums`` is the state: the k prototypes coordinate by coordinate, then their k mean
    targets, both with bounds at -1 and 1, then the k noised numbers of units.
    """

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        needs_target(workload)
        return clusters(plan) * (needs_features(workload)[0] + 2)

    def memory_sizes(self, plan: Plan, dimension: int) -> dict[str, int]:
        """How many rounds there were."""
        return {ROUNDS: 1}

    def first_sums(self, workload: Workload, plan: Plan) -> NDArray[np.float32]:
        """Public prototypes of the middle target, nobody in them."""
        first = first_centres(plan, needs_features(workload)[0])
        none = np.zeros(2 * len(first), np.float32)
        self.dimension(workload, plan)  # whether the workload suits
        return np.concatenate([first.T.ravel(), none])

    def unit_values(self, workload: Workload, units: Persons, state: Arrays, plan: Plan) -> Real:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        features, low, high = needs_features(workload)
        prototypes, targets, _ = _parts(state, plan)
        z, y = to_unit(units.x, low, high), one_target(units, *needs_target(workload))
        near = nearest(z, prototypes)
        rows = np.empty((*near.shape, features + 2))
        rows[:, :, :features] = z - prototypes[near]
        rows[:, :, features] = y - targets[near]
        rows[:, :, features + 1] = count_weight(features)
        return by_cluster(rows, near, row_weights(units), len(prototypes)).reshape(len(units), -1)

    def step(self, sums: NDArray[np.float32], memory: Memory, total: Real, plan: Plan) -> None:
        """As k-means; a half of a divided prototype starts with the whole one's target."""
        count = clusters(plan)
        features = sums.size // count - 2
        least, opened = least_count(plan, features), total.reshape(features + 2, count)
        counts = opened[-1] / count_weight(features)
        columns = sums.reshape(features + 2, count)
        now = moved(columns[:-1].astype(np.float64), opened[:-1], counts, least)
        memory[ROUNDS][0] += 1
        if memory[ROUNDS][0] < plan.plan.rounds:
            now = divided(now, counts, least, plan, int(memory[ROUNDS][0]))
        columns[:-1] = np.clip(now, -1.0, 1.0)
        columns[-1] = counts

    def judged(
        self, workload: Workload, persons: Persons, state: Arrays, plan: Plan
    ) -> tuple[Real, NDArray[np.float32]]:
        """Predictions and targets, [P, R] both; scores as :func:`..base.scores_of`."""
        _, low, high = needs_features(workload)
        bounds = needs_target(workload)
        one_target(persons, *bounds)
        z = to_unit(persons.x, low, high)
        said = predicted(z.reshape(-1, z.shape[2]), state, plan).reshape(z.shape[:2])
        return scores_of(said, *bounds, plan), persons.y


def predicted(z: Real, state: Arrays, plan: Plan) -> Real:
    """Targets in [-1, 1] for rows float64[N, F] in [-1, 1]: float64[N].

    The mean over the ``method.neighbours`` nearest of those prototypes that have units at all.
    """
    prototypes, targets, counts = _parts(state, plan)
    if not (counts > 0).any():
        return np.zeros(len(z))
    kept = np.flatnonzero(counts > 0)
    away = distances(z, prototypes[kept])
    most = min(_neighbours(plan), len(kept))
    near = np.argpartition(away, most - 1, axis=1)[:, :most]
    weight = counts[kept][near] / (np.take_along_axis(away, near, axis=1) + NEAR)
    said = (weight * targets[kept][near]).sum(axis=1) / weight.sum(axis=1)
    return np.asarray(said, np.float64)


def prototypes_of(state: Arrays, workload: Workload, plan: Plan) -> tuple[Real, Real, Real]:
    """Prototypes float64[k, F] and targets float64[k] in the workload's units, units in each."""
    _, low, high = needs_features(workload)
    prototypes, targets, counts = _parts(state, plan)
    return from_unit(prototypes, low, high), from_unit(targets, *needs_target(workload)), counts


def _parts(state: Arrays, plan: Plan) -> tuple[Real, Real, Real]:
    columns = state[SUMS].reshape(-1, clusters(plan)).astype(np.float64)
    return np.ascontiguousarray(columns[:-2].T), columns[-2], columns[-1]


def _neighbours(plan: Plan) -> int:
    if plan.method.neighbours is None:
        raise Misuse("a plan of prototypes has neighbours")
    return plan.method.neighbours
