"""k-means by noised Lloyd steps: each round moves every centre to its rows' noised mean.

DPLloyd: Su, Cao, Li, Bertino and Jin, "Differentially private k-means clustering" (CODASPY 2016),
with Gaussian noise and shifts instead of sums (:mod:`fedflow.learning.methods.clusters`). Without
noise and clipping it is Lloyd's algorithm exactly, but that a cluster nobody is in gets half of the
largest one. Few rounds do best: the budget is shared between them.
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
    row_weights,
    size_of,
    to_unit,
)
from fedflow.learning.methods.clusters import (
    Clusters,
    by_cluster,
    count_weight,
    nearest,
)
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload


class KMeans(Clusters):
    """``strategy.name = "kmeans"``: d = k * (F + 1).

    The tensor ``sums`` is the state: coordinate by coordinate the k centres, bounds at -1 and 1,
    then the k noised numbers of units.
    """

    def unit_values(self, workload: Workload, units: Persons, state: Arrays, plan: Plan) -> Real:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        features, low, high = needs_features(workload)
        centres, z = _centres(state, plan), to_unit(units.x, low, high)
        near = nearest(z, centres)
        rows = np.full((*near.shape, features + 1), count_weight(features))
        rows[:, :, :features] = z - centres[near]
        return by_cluster(rows, near, row_weights(units), len(centres)).reshape(len(units), -1)

    def judged(
        self, workload: Workload, persons: Persons, state: Arrays, plan: Plan
    ) -> tuple[Real, NDArray[np.float32]]:
        """Each row's nearest centre and the row itself, within the bounds: [P, R, F] both."""
        _, low, high = needs_features(workload)
        z, centres = to_unit(persons.x, low, high), _centres(state, plan)
        target = from_unit(z, low, high).astype(np.float32)
        return from_unit(centres[nearest(z, centres)], low, high), target


def centres_of(state: Arrays, workload: Workload, plan: Plan) -> tuple[Real, Real]:
    """The centres float64[k, F] as the workload has its features, and the noised units in each."""
    features, low, high = needs_features(workload)
    counts = state[SUMS][features * size_of(plan, "clusters") :].astype(np.float64)
    return from_unit(_centres(state, plan), low, high), counts


def _centres(state: Arrays, plan: Plan) -> Real:
    columns = state[SUMS].reshape(-1, size_of(plan, "clusters"))
    return np.ascontiguousarray(columns[:-1].T, np.float64)
