"""What boosted trees and forests share: random trees, and sums of gradients by leaf.

Where trees divide is drawn from public randomness, before anybody looks at data, so all of the
privacy budget goes into what their leaves say: "totally random" trees with Newton leaves, in
batches that share one sum, are what works best under differential privacy (Maddock, Cormode, Wang,
Maple and Jha, "Federated boosted decision trees with differential privacy", CCS 2022; for forests
Fletcher and Islam, "Differentially private random decision forests using smooth sensitivity",
2017). A round is one histogram: for every leaf of the batch, gradient and curvature of the units
in it.

Targets lie at -2 and 2 for values, whose loss is an eighth of the squared error, and at 0 and 1 for
two classes, whose loss is the logistic. So in both a row's gradient is about a half and its
curvature at most a quarter, and ``norm * sqrt(5 / 16 * trees in a batch)`` clips hardly anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse, Refusal
from fedflow.learning.methods.base import (
    Memory,
    Real,
    needs_features,
    needs_target,
    noise_stddev,
    one_target,
    row_weights,
)
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload

#: Memory tensors: what each leaf says, tree by tree, and how many trees there are so far.
LEAVES, TREES = "~leaves", "~trees"
#: No leaf moves a score further than this in one step: from even chances to 88 %.
CLAMP = 2.0
#: The curvature of one row of a unit, at most.
CURVATURE = 0.25
Cuts = tuple[tuple[float, ...], ...]
Rows = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Tree:
    """Whole binary tree, root first: a row goes right where ``x[feature] > cut``. [2^depth - 1]."""

    feature: NDArray[np.int64]
    cut: Real

    def leaf(self, x: Rows) -> NDArray[np.int64]:
        """The leaf of each row of ``x`` [N, V], from 0 on at the left."""
        rows, node = np.arange(len(x)), np.zeros(len(x), np.int64)
        while len(x) and node[0] < len(self.cut):  # all are equally deep
            node = 2 * node + 1 + (x[rows, self.feature[node]] > self.cut[node])
        return node - len(self.cut)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What trees look at: ``of`` takes float32[P, R, F] to [P, R, V]; ``cuts`` of each of V."""

    cuts: Cuts
    of: Callable[[NDArray[np.float32]], Rows]


@dataclass(frozen=True, slots=True)
class RowSet:
    """All rows of some units: ``x`` [N, V], whose they are [N], their weights and targets [N]."""

    x: Rows
    unit: NDArray[np.int64]
    weight: Real
    target: Real


def sizes(plan: Plan) -> tuple[int, int, int]:
    """Trees in all, trees in a round, leaves of a tree."""
    trees, depth = plan.method.trees, plan.method.depth
    if trees is None or depth is None:
        raise Misuse("a plan of trees says how many and how deep")
    return trees, trees // max(plan.plan.rounds, 1), 2**depth


def inputs_of(workload: Workload, plan: Plan) -> Inputs:
    """Public places where trees may divide; Refusal when neither workload nor plan says any.

    With ``method.bins`` the features as they are, in bins of equal width between their bounds;
    otherwise the workload's ``cuts``, of the features or of its ``tree_features``.
    """
    bins = plan.method.bins
    if bins is not None:
        features, low, high = needs_features(workload)
        width = (high - low) / bins
        return Inputs((tuple(low + width * at for at in range(1, bins)),) * features, _unchanged)
    cuts = getattr(workload, "cuts", None)
    if cuts is None or plan.is_prepared:
        why = "[preprocessing] changes its units" if cuts is not None else "it has none (`cuts`)"
        raise Refusal(
            "workload-unsuitable",
            f"trees cannot divide at the cuts of workload {workload.name!r}: {why};"
            " set method.bins to cut between the bounds of its features",
        )
    return Inputs(cuts, getattr(workload, "tree_features", _unchanged))


def is_binary(workload: Workload) -> bool:
    """Whether the target is one of two classes; Refusal for more of them."""
    needs_target(workload)
    classes = getattr(workload, "classes", None)
    if classes is not None and classes != 2:
        raise Refusal(
            "workload-unsuitable",
            f"trees tell two classes apart or predict a value; {workload.name!r} has {classes}",
        )
    return classes == 2


def rows_of(workload: Workload, units: Persons, inputs: Inputs) -> RowSet:
    """The rows of ``units``, unit by unit, targets in [-1, 1]."""
    mask = units.mask
    target = one_target(units, *needs_target(workload))
    unit = np.nonzero(mask)[0]
    return RowSet(inputs.of(units.x)[mask], unit, row_weights(units)[mask], target[mask])


def summed_by_leaf(
    rows: RowSet, units: int, gradient: Real, curvature: Real, inputs: Inputs, plan: Plan, done: int
) -> Real:
    """What each unit adds, float64[units, 2 * trees * leaves]: gradients, then curvatures.

    ``gradient`` and ``curvature`` [N] of the rows; the batch of trees starts at tree ``done``.
    """
    _, batch, leaves = sizes(plan)
    out = np.zeros((units, 2, batch, leaves))
    parts = (gradient * rows.weight, curvature * rows.weight)
    for at, tree in enumerate(drawn(plan, inputs.cuts, done, batch)):
        place = rows.unit * leaves + tree.leaf(rows.x)
        for which, part in enumerate(parts):
            counted = np.bincount(place, part, units * leaves)
            out[:, which, at] = counted.reshape(units, leaves)
    return out.reshape(units, -1)


def said_by(x: Rows, state: Arrays, inputs: Inputs, plan: Plan) -> Real:
    """The sum of what the trees so far say of rows [N, V]: float64[N], added tree by tree."""
    leaves = sizes(plan)[2]
    values = state[LEAVES].astype(np.float64).reshape(-1, leaves)
    out = np.zeros(len(x))
    for at, tree in enumerate(drawn(plan, inputs.cuts, 0, int(state[TREES][0]))):
        out += values[at][tree.leaf(x)]
    return out


def newton(total: Real, plan: Plan) -> tuple[np.float64, Real]:
    """From an opened sum the step of all rows alike, and that of each leaf beyond it, [T * leaves].

    Newton's step ``gradient / curvature``. What all rows have in common is in every tree, so it is
    found from all leaves together and taken once. A leaf's curvature is noised, and may be below
    zero where nobody is: then it counts as none, and to every one the standard deviation of the
    noise and the plan's ridge are added, which keeps leaves of few units near zero.
    """
    gradient, curvature = total.reshape(2, -1)
    noise = np.float64(noise_stddev(plan))
    ridge = np.float64(CURVATURE * (plan.method.ridge or 0.0)) + noise
    # cumsum adds one after another on every machine; sum does not
    whole = np.maximum(np.cumsum(curvature)[-1], 0.0) + noise * np.sqrt(np.float64(gradient.size))
    shared = np.clip(np.cumsum(gradient)[-1] / whole, -CLAMP, CLAMP)
    rest = (gradient - shared * curvature) / (np.maximum(curvature, 0.0) + ridge)
    return np.float64(shared), np.asarray(np.clip(rest, -CLAMP, CLAMP), np.float64)


def take_batch(memory: Memory, plan: Plan) -> slice:
    """Where the leaves of this round's trees stand in ``~leaves``; counts the trees."""
    trees, batch, leaves = sizes(plan)
    done = int(memory[TREES][0])
    if done + batch > trees:
        raise Misuse(f"a plan of {trees} trees has no more than its rounds make")
    memory[TREES][0] = done + batch
    return slice(done * leaves, (done + batch) * leaves)


def drawn(plan: Plan, cuts: Cuts, first: int, count: int) -> Iterator[Tree]:
    """Trees ``first`` and so on of a plan: the same for all parties, others for another plan."""
    for number in range(first, first + count):
        yield _tree(plan.digest(), number, plan.method.depth or 0, cuts)


@lru_cache(maxsize=4096)
def _tree(digest: bytes, number: int, depth: int, cuts: Cuts) -> Tree:
    """A node's feature is drawn with the weight sqrt(its cuts), the cut uniformly.

    Of features and cuts only those that may divide what reaches the node. Where there are none the
    cut is infinite, and all go left.
    """
    label = b"fedflow/1 tree\0" + digest + number.to_bytes(4, "big")
    seed = hashlib.sha256(label).digest()
    dice = Csprng.from_seed(seed).uniform(2 * (2**depth - 1)).reshape(-1, 2)
    counts = np.array([len(each) for each in cuts], np.int64)
    most = int(counts.max()) + 1
    table = np.array([each + (np.inf,) * (most - len(each)) for each in cuts])
    low, high = np.zeros((1, len(cuts)), np.int64), counts[None]
    features, places = [], []
    for level in range(depth):
        nodes = np.arange(2**level)
        upto = np.cumsum(np.where(high > low, np.sqrt(counts), 0.0), axis=1)
        first, second = dice[2**level - 1 : 2 ** (level + 1) - 1].T
        feature = (upto <= (first * upto[:, -1])[:, None]).sum(axis=1)
        divides = feature < len(cuts)
        feature = np.minimum(feature, len(cuts) - 1)
        room = high[nodes, feature] - low[nodes, feature]
        at = low[nodes, feature] + np.minimum((second * room).astype(np.int64), room - 1)
        features.append(feature)
        places.append(np.where(divides, table[feature, np.maximum(at, 0)], np.inf))
        low, high = np.repeat(low, 2, axis=0), np.repeat(high, 2, axis=0)
        high[2 * nodes, feature] = at
        low[2 * nodes + 1, feature] = at + 1
    return Tree(np.concatenate(features), np.concatenate(places))


def _unchanged(x: NDArray[np.float32]) -> Rows:
    return x
