"""Centres that every party moves alike: what k-means and prototypes share.

Features are mapped so that the public bounds are -1 and 1. The first centres are public random
points of the inner half of that cube, each the best of a few candidates: far from those before it
(Mitchell, "Spectrally optimal sampling for distribution ray tracing", SIGGRAPH 1991; Su et al.,
CODASPY 2016, pack spheres to the same end). A unit adds how far its rows are *from their centre*,
not where they are: the norm to clip to is then that of a distance, which shrinks as centres find
their places, and a far row counts less in both its shift and its count, so that a centre stays a
weighted mean.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.learning.methods.base import (
    ROUNDS,
    Memory,
    Real,
    needs_features,
    noise_stddev,
    size_of,
)

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Workload

#: Candidates for each first centre, and beyond how many centres the first candidate is taken: the
#: work grows with the square.
CANDIDATES, MOST_SPREAD = 8, 512
#: Su et al.: how far from the middle, as a share of the bounds, a coordinate of a centre is.
TYPICAL = 0.225
#: A count within this many standard deviations of none says nothing.
DEVIATIONS = 2.0
#: How far the halves of a divided cluster start from its centre.
SPLIT = 2.0**-6
_AT_ONCE = 1024


class Clusters:
    """The part of a :class:`~fedflow.learning.methods.base.Method` that moves k centres.

    The tensor ``sums`` is the state: coordinate by coordinate the k centres, bounds at -1 and 1;
    then ``beside`` rows of k means that move with them; then the k noised numbers of units.
    """

    beside = 0

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """See :class:`~fedflow.learning.methods.base.Method`."""
        return size_of(plan, "clusters") * (needs_features(workload)[0] + self.beside + 1)

    def memory_sizes(self, plan: Plan, dimension: int) -> dict[str, int]:
        """How many rounds there were."""
        return {ROUNDS: 1}

    def first_sums(self, workload: Workload, plan: Plan) -> NDArray[np.float32]:
        """Public centres, the middle of what is beside them, nobody in them."""
        first = first_centres(plan, needs_features(workload)[0])
        rest = self.dimension(workload, plan) - first.size
        return np.concatenate([first.T.ravel(), np.zeros(rest, np.float32)])

    def step(self, sums: NDArray[np.float32], memory: Memory, total: Real, plan: Plan) -> None:
        """Centres to their noised means; empty clusters divide the largest, but at the end."""
        columns = sums.reshape(-1, size_of(plan, "clusters"))
        features, opened = len(columns) - self.beside - 1, total.reshape(columns.shape)
        least, counts = least_count(plan, features), opened[-1] / count_weight(features)
        now = moved(columns[:-1].astype(np.float64), opened[:-1], counts, least)
        memory[ROUNDS][0] += 1
        if memory[ROUNDS][0] < plan.plan.rounds:
            now = divided(now, counts, least, plan, int(memory[ROUNDS][0]))
        columns[:-1] = np.clip(now, -1.0, 1.0)
        columns[-1] = counts


def count_weight(features: int) -> float:
    """What a row adds to its cluster's count, beside up to 1 for each of its features.

    With s the noise of a centre is least at ``s^2 = TYPICAL * sqrt(F)``: the more a count weighs,
    the less noise it has and the more the shifts have, as both are clipped together.
    """
    return math.sqrt(TYPICAL * math.sqrt(features))


def first_centres(plan: Plan, features: int) -> NDArray[np.float32]:
    """float32[k, F], public and the same everywhere for the same plan."""
    count, csprng = size_of(plan, "clusters"), _public(plan, b"first centres")
    tries = CANDIDATES if count <= MOST_SPREAD else 1
    out = np.empty((count, features), np.float64)
    for at in range(count):
        drawn = csprng.uniform(tries * features).reshape(tries, features) - 0.5
        out[at] = drawn[int(np.argmax(_nearness(drawn, out[:at])))] if tries > 1 else drawn[0]
    return out.astype(np.float32)


def _nearness(candidates: Real, others: Real) -> Real:
    """Squared distance to the nearest of ``others``; sums in one order, so the same anywhere."""
    if not len(others):
        return np.zeros(len(candidates))
    squared = np.zeros((len(candidates), len(others)))
    for feature in range(candidates.shape[1]):
        away = candidates[:, feature, None] - others[None, :, feature]
        squared += away * away
    return np.asarray(squared.min(axis=1))


def distances(z: Real, centres: Real) -> Real:
    """Squared distances float64[N, k] of rows float64[N, F] to centres float64[k, F]."""
    out = (z * z).sum(axis=1)[:, None] - 2.0 * (z @ centres.T) + (centres * centres).sum(axis=1)
    return np.asarray(np.maximum(out, 0.0), np.float64)


def nearest(z: Real, centres: Real) -> NDArray[np.int64]:
    """The nearest centre of each row: int64[..] for float64[.., F]."""
    rows = z.reshape(-1, z.shape[-1])
    parts = [
        distances(rows[at : at + _AT_ONCE], centres).argmin(axis=1)
        for at in range(0, len(rows), _AT_ONCE)
    ]
    found = np.concatenate(parts) if parts else np.zeros(0)
    return found.astype(np.int64).reshape(z.shape[:-1])


def by_cluster(rows: Real, cluster: NDArray[np.int64], weights: Real, count: int) -> Real:
    """Each person's rows float64[P, R, n], weighted, summed by cluster: float64[P, n, k]."""
    out = np.zeros((len(rows), count, rows.shape[2]))
    np.add.at(out, (np.arange(len(rows))[:, None], cluster), weights[:, :, None] * rows)
    return out.transpose(0, 2, 1)


def least_count(plan: Plan, features: int) -> float:
    """From how many units on a noised count is believed."""
    return max(1.0, DEVIATIONS * noise_stddev(plan) / count_weight(features))


def moved(now: Real, shifts: Real, counts: Real, least: float) -> Real:
    """``now`` float64[n, k] moved by the mean of ``shifts`` float64[n, k], within -1 and 1.

    A cluster whose noised count is below ``least`` stays where it is.
    """
    believed = counts >= least
    mean = shifts / np.where(believed, counts, 1.0)
    return np.clip(now + np.where(believed, mean, 0.0), -1.0, 1.0)


def divided(columns: Real, counts: Real, least: float, plan: Plan, number: int) -> Real:
    """Give every cluster that is not believed one half of the largest: float64[n, k].

    A row of ``columns`` float64[n, k] is a coordinate of the centres. Halves are apart along a
    public direction, so the next round cuts the cluster there (Linde, Buzo and Gray, 1980). What
    would leave halves below ``least`` is not divided. ``counts`` float64[k] are changed likewise.
    """
    out, csprng = columns.copy(), _public(plan, b"division %d" % number)
    for empty in np.flatnonzero(counts < least):
        largest = int(np.argmax(counts))
        if counts[largest] < 2.0 * least:
            break
        signs = (csprng.uint32(len(out)) & np.uint32(1)).astype(np.float64) * 2.0 - 1.0
        out[:, empty] = out[:, largest] + SPLIT * signs
        out[:, largest] = out[:, largest] - SPLIT * signs
        counts[largest] /= 2.0
        counts[empty] = counts[largest]
    return out


def _public(plan: Plan, what: bytes) -> Csprng:
    label = b"fedflow/1 clusters\0" + what + b"\0"
    return Csprng.from_seed(hashlib.sha256(label + plan.digest()).digest())
