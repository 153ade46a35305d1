"""What a method without a gradient consists of. NumPy only: coordinators and auditors need it too.

:meth:`Method.step` is what every party repeats: element-wise IEEE 754 operations in one order, so
that all come to the same bits. :meth:`Method.unit_values` and :meth:`Method.judged` run at sites.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse, Refusal
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Persons, Workload

#: The tensor of a model file that has a place for every summed number.
SUMS = "sums"
#: How many sums a running mean is over.
ROUNDS = "~rounds"
#: Predictions this near to the ends of a target's bounds are moved away before they are logits.
_EDGE = 1e-6
Real = NDArray[np.float64]
Memory = Mapping[str, NDArray[np.float32]]


class Method(Protocol):
    """One method; it has no state of its own."""

    def dimension(self, workload: Workload, plan: Plan) -> int:
        """Numbers in the sum, d; Refusal when the workload does not suit the method."""

    def memory_sizes(self, plan: Plan, dimension: int) -> dict[str, int]:
        """Sizes of the method's memory tensors, by name starting with "~"; zero at first."""

    def first_sums(self, workload: Workload, plan: Plan) -> NDArray[np.float32]:
        """The tensor ``sums`` that a job starts from, float32[d], public."""

    def unit_values(self, workload: Workload, units: Persons, state: Arrays, plan: Plan) -> Real:
        """What each unit would add, float64[P, d], before it is clipped.

        A row depends on its own unit and on public things only. ``state`` holds the tensors of the
        model file.
        """

    def step(self, sums: NDArray[np.float32], memory: Memory, total: Real, plan: Plan) -> None:
        """Make the next state, in place, from the opened ``total`` float64[d], noise included.

        ``total`` is in units: what a unit at the clipping norm adds, on average over the plan's
        sampling.
        """

    def judged(
        self, workload: Workload, persons: Persons, state: Arrays, plan: Plan
    ) -> tuple[Real, NDArray[np.float32]]:
        """What the state says of ``persons``, and what is true, as :mod:`..metrics` compares them.

        float64[P, R, ..] and float32[P, R, ..]. Misuse for a method that only describes data.
        """


class Averaged:
    """The part of a :class:`Method` whose state is the mean of all sums so far."""

    def memory_sizes(self, plan: Plan, dimension: int) -> dict[str, int]:
        """How many sums the mean is over."""
        return {ROUNDS: 1}

    def first_sums(self: Method, workload: Workload, plan: Plan) -> NDArray[np.float32]:
        """Nothing summed."""
        return np.zeros(self.dimension(workload, plan), np.float32)

    def step(self, sums: NDArray[np.float32], memory: Memory, total: Real, plan: Plan) -> None:
        """Take ``total`` into the mean, in place; ``~rounds`` counts the sums."""
        memory[ROUNDS][0] += 1
        before = sums.astype(np.float64)
        sums[:] = before + (total - before) / np.float64(memory[ROUNDS][0])


class Describing(Averaged):
    """That of a method which predicts nothing."""

    def judged(
        self, workload: Workload, persons: Persons, state: Arrays, plan: Plan
    ) -> tuple[Real, NDArray[np.float32]]:
        """Misuse: there is no score."""
        raise Misuse("what only describes data has no score")


def size_of(plan: Plan, name: Literal["bins", "clusters", "neighbours"]) -> int:
    """A size under ``[method]`` that the plan's rules ask for; Misuse where it is missing."""
    size: int | None = getattr(plan.method, name)
    if size is None:
        raise Misuse(f"a plan of {plan.strategy.name} has method.{name}")
    return size


def needs_features(workload: Workload) -> tuple[int, float, float]:
    """The public number of features and the bounds they lie in; Refusal when they are not said."""
    features, bounds = getattr(workload, "features", None), getattr(workload, "bounds", None)
    if not isinstance(features, int) or bounds is None:
        raise Refusal(
            "workload-unsuitable",
            f"workload {workload.name!r} does not say its public number of features and their"
            " bounds (attributes `features` and `bounds`), which this method needs",
        )
    low, high = bounds
    return features, float(low), float(high)


def needs_target(workload: Workload) -> tuple[float, float]:
    """The public bounds of the target (`target_bounds`); Refusal when they are not said."""
    bounds = getattr(workload, "target_bounds", None)
    if bounds is None:
        raise Refusal(
            "workload-unsuitable",
            f"workload {workload.name!r} does not say between which public values its target lies"
            " (attribute `target_bounds`), which this method needs",
        )
    low, high = bounds
    return float(low), float(high)


def to_unit(values: NDArray[np.floating], low: float, high: float) -> Real:
    """``values`` with their bounds at -1 and 1, clipped to them; what is missing is 0."""
    middle, half = (low + high) / 2, (high - low) / 2
    out = np.clip((values.astype(np.float64) - middle) / half, -1.0, 1.0)
    return np.where(np.isnan(out), 0.0, out)


def from_unit(values: Real, low: float, high: float) -> Real:
    """The inverse of :func:`to_unit`."""
    return (low + high) / 2 + values * ((high - low) / 2)


def one_target(units: Persons, low: float, high: float) -> Real:
    """The target float64[P, R] in [-1, 1]; Refusal where a row has several."""
    if units.y.ndim != 2:
        raise Refusal("workload-unsuitable", "this method needs one target per row")
    return to_unit(units.y, low, high)


def scores_of(predicted: Real, low: float, high: float, plan: Plan) -> Real:
    """Predictions in [-1, 1] as :mod:`fedflow.learning.evaluation` takes scores.

    The value itself for metric "mse". Metrics of two classes take a logit, so that the predicted
    share of the way from one bound to the other is the probability that is binned between the
    workload's ``score_range``, and that over a half is a yes.
    """
    if plan.evaluation.metric == "mse":
        return from_unit(predicted, low, high)
    share = np.clip((predicted + 1.0) / 2.0, _EDGE, 1.0 - _EDGE)
    return np.asarray(np.log(share / (1.0 - share)), np.float64)


def noise_stddev(plan: Plan) -> float:
    """Standard deviation of the noise in one number of ``total``, in units.

    Of a sum over the fewest sites; with more of them the noise is a little larger, by the root.
    """
    privacy = plan.privacy
    return privacy.noise_multiplier * privacy.clipping_norm / privacy.sample_rate


def unit_batches(units: Persons, size: int) -> Iterator[Persons]:
    """``units`` in parts of at most ``size``: bounds memory only."""
    for at in range(0, len(units), size):
        yield units.take(slice(at, at + size))


def row_weights(units: Persons) -> Real:
    """float64[P, R]: the rows of a unit share its weight of 1 equally, padding has none."""
    counts = np.maximum(units.mask.sum(axis=1, keepdims=True), 1)
    return np.asarray(units.mask / counts, np.float64)
