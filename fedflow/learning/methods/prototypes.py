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

from fedflow.learning.methods.base import (
    SUMS,
    Real,
    from_unit,
    needs_features,
    needs_target,
    one_target,
    row_weights,
    scores_of,
    size_of,
    to_unit,
)
from fedflow.learning.methods.clusters import (
    Clusters,
    by_cluster,
    count_weight,
    distances,
    nearest,
)
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload

#: Added to squared distances: a row on a prototype does not follow it alone.
NEAR = 1e-3


class Prototypes(Clusters):
    """``strategy.name = "prototypes"``: d = k * (F + 2).

    The tensor ``sums`` is the state: the k prototypes coordinate by coordinate, then their k mean
    targets, both with bounds at -1 and 1, then the k noised numbers of units.
    """

    beside = 1  # the targets

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        needs_target(workload)
        return super().dimension(workload, plan)

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
    most = min(size_of(plan, "neighbours"), len(kept))
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
    columns = state[SUMS].reshape(-1, size_of(plan, "clusters")).astype(np.float64)
    return np.ascontiguousarray(columns[:-2].T), columns[-2], columns[-1]
