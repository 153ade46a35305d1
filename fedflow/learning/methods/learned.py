"""What a method has learned, as tables for a person: read from the model file, which is public."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedflow.errors import Refusal
from fedflow.learning.methods.base import Real, needs_features
from fedflow.learning.methods.histogram import class_counts, class_weights, counts, quantile
from fedflow.learning.methods.kmeans import centres_of
from fedflow.learning.methods.linear import coefficients
from fedflow.learning.methods.prototypes import prototypes_of
from fedflow.learning.model_file import Arrays

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import Workload

SHARES = (0.01, 0.25, 0.5, 0.75, 0.99)
Cell = str | float


@dataclass(frozen=True)
class LearnedTable:
    """A title, headings, and rows of as many cells; noised numbers, so counts may be negative."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def facts(self) -> dict[str, Any]:
        """As plain values, for machines."""
        return asdict(self)


def learned(state: Arrays, workload: Workload, plan: Plan) -> list[LearnedTable]:
    """The tables of the plan's method; Refusal for one whose model file is no table."""
    reader = _READERS.get(plan.strategy.name)
    if reader is None:
        raise Refusal(
            "nothing-to-read",
            f'what strategy "{plan.strategy.name}" learns is its model file; this reads those of '
            + ", ".join(sorted(_READERS)),
        )
    return reader(state, workload, plan)


def tells(plan: Plan) -> bool:
    """Whether :func:`learned` has tables for the plan."""
    return plan.strategy.name in _READERS


def feature_names(workload: Workload) -> tuple[str, ...]:
    """The workload's names, or numbers from 0 on."""
    count = needs_features(workload)[0]
    names = tuple(str(name) for name in getattr(workload, "feature_names", ()))
    return names if len(names) == count else tuple(f"feature {at}" for at in range(count))


def _kmeans(state: Arrays, workload: Workload, plan: Plan) -> list[LearnedTable]:
    centres, people = centres_of(state, workload, plan)
    names = feature_names(workload)
    return [_by_cluster("centres", [_row("units", people), *map(_row, names, centres.T)])]


def _prototypes(state: Arrays, workload: Workload, plan: Plan) -> list[LearnedTable]:
    prototypes, targets, people = prototypes_of(state, workload, plan)
    head = [_row("units", people), _row("target", targets)]
    names = feature_names(workload)
    return [_by_cluster("prototypes", [*head, *map(_row, names, prototypes.T)])]


def _row(name: str, values: Real) -> tuple[Cell, ...]:
    return (name, *map(float, values))


def _by_cluster(title: str, rows: list[tuple[Cell, ...]]) -> LearnedTable:
    numbers = (str(at) for at in range(len(rows[0]) - 1))
    return LearnedTable(title, ("cluster", *numbers), tuple(rows))


def _linear(state: Arrays, workload: Workload, plan: Plan) -> list[LearnedTable]:
    found = coefficients(state, workload, plan)
    names = ("intercept", *feature_names(workload))
    values = (found.intercept, *map(float, found.weights))
    title = f"coefficients (noise {found.noise:.3g} and ridge {found.ridge:.3g}, in units)"
    return [LearnedTable(title, ("feature", "coefficient"), tuple(zip(names, values, strict=True)))]


def _histogram(state: Arrays, workload: Workload, plan: Plan) -> list[LearnedTable]:
    _, low, high = needs_features(workload)
    rows: list[tuple[Cell, ...]] = []
    for name, row in zip(feature_names(workload), counts(state, workload, plan), strict=True):
        found = (quantile(row[:-1], share, low, high) for share in SHARES)
        rows.append((name, float(row.sum()), float(row[-1]), *found))
    heads = ("feature", "units", "missing", *(f"{share:.0%}" for share in SHARES))
    tables = [LearnedTable("quantiles", heads, tuple(rows))]
    classes = class_counts(state, workload, plan)
    if len(classes):
        weights = class_weights(state, workload, plan)
        tables.append(
            LearnedTable(
                "classes",
                ("class", "units", "weight for training"),
                tuple((str(at), float(classes[at]), weights[at]) for at in range(len(classes))),
            )
        )
    return tables


_READERS: dict[str, Callable[[Arrays, Workload, Plan], list[LearnedTable]]] = {
    "histogram": _histogram,
    "kmeans": _kmeans,
    "linear": _linear,
    "prototypes": _prototypes,
}
