"""Tables: a workload out of a list of columns, with missing cells and categories.

``Tabular("stays", unit_column="patient", label="readmitted", columns=[Numeric("age", 0, 120),
Categorical("ward", values=("a", "b")), Categorical("code", buckets=64)])`` reads CSV. An empty cell
is a missing value; a plan's ``[preprocessing]`` says what it becomes, the same at every site.
Categories are codes: the place in the public list, or for values that nobody listed one of
``buckets`` that a hash chooses, so that no site's names ever leave it. The model turns codes into
one-hot inputs of its first layer, whose weights for them are an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse
from fedflow.learning.methods.columns import Column
from fedflow.learning.preprocessing import prepared_features
from fedflow.learning.table import Table
from fedflow.learning.workload import PersonData, group_by_person

_LARGEST = 5.0  #: of a prepared number, with a plan's usual clamp


@dataclass(frozen=True)
class Numeric:
    """A column of numbers from ``low`` to ``high``, both public; cells may be empty if ``missing``.

    A number outside is an error of the file: bounds are what the column means.
    """

    name: str
    low: float
    high: float
    missing: bool = True


@dataclass(frozen=True)
class Categorical:
    """A column of words: a public list of ``values``, or ``buckets`` for what nobody listed."""

    name: str
    values: tuple[str, ...] = ()
    buckets: int = 0
    missing: bool = True


class Tabular:
    """A workload that says whether a row's ``label`` column is 0 or 1, from the other columns.

    ``model`` is "logistic", or "mlp" with one layer of ``hidden`` units. ``unit_column`` names
    the person, who has at most ``max_rows`` rows.
    """

    def __init__(
        self,
        name: str,
        *,
        unit_column: str,
        label: str,
        columns: Sequence[Numeric | Categorical],
        reference_persons: int,
        model: Literal["logistic", "mlp"] = "logistic",
        hidden: int = 16,
        max_rows: int = 1,
        score_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        names = [unit_column, label, *(column.name for column in columns)]
        if not columns or len(set(names)) < len(names):
            raise Misuse("a table has columns, each with a name of its own")
        self.name, self.unit_column, self.label = name, unit_column, label
        self.reference_persons, self.score_range = reference_persons, score_range
        self.columns = tuple(_public(column) for column in columns)
        self.features = prepared_features(self.columns)
        largest = max(_LARGEST, *(column.categories for column in self.columns))
        self.bounds = (-_LARGEST, float(largest))
        self._hidden = hidden if model == "mlp" else 0
        self._max_rows = max_rows

    def build_model(self) -> torch.nn.Module:
        """A new model with its public initial weights."""
        return TabularModel(self.columns, self._hidden, self.name)

    def load(self, path: str | Path) -> PersonData:
        """One site's rows, missing values as not-a-number; InputError naming row and column."""
        table = Table(path, [self.unit_column, self.label, *(c.name for c in self.columns)])
        values = [_read(table, column) for column in self.columns]
        return group_by_person(
            np.stack(values, axis=1).astype(np.float32),
            table.numbers(self.label, choices=(0.0, 1.0)).astype(np.float32),
            table.identifiers(self.unit_column),
            dataset=self.name,
            max_rows=self._max_rows,
            where=table.where,
        )

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats per row."""
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")


class TabularModel(torch.nn.Module):
    """One score per row of prepared data: one-hot codes, numbers and flags into linear layers."""

    def __init__(self, columns: Sequence[Column], hidden: int, seed: str) -> None:
        super().__init__()
        self._codes = [(at, c.categories + 1) for at, c in enumerate(columns) if c.categories]
        numbers = [at for at, column in enumerate(columns) if not column.categories]
        self._numbers = numbers + list(range(len(columns), prepared_features(tuple(columns))))
        inputs = len(self._numbers) + sum(codes for _, codes in self._codes)
        self.first = _linear(inputs, hidden or 1)
        self.last = _linear(hidden, 1) if hidden else None
        if self.last is not None:  # else zero weights are as good a start as any
            label = b"fedflow/1 tabular weights\0" + seed.encode()
            csprng = Csprng.from_seed(hashlib.sha256(label).digest())
            _spread(self.first, csprng)
            _spread(self.last, csprng)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., F] to [..]."""
        parts = [x[..., self._numbers]]
        for at, codes in self._codes:
            # Compared, not indexed: the same for whatever shape, and differentiable per example.
            parts.append((x[..., at, None].round() == torch.arange(codes)).to(x.dtype))
        out: torch.Tensor = self.first(torch.cat(parts, dim=-1))
        if self.last is not None:
            out = self.last(torch.tanh(out))
        return out.squeeze(-1)


def _public(column: Numeric | Categorical) -> Column:
    if isinstance(column, Numeric):
        if not column.low < column.high:
            raise Misuse(f"the bounds of column {column.name!r} are no range")
        return Column(column.name, column.low, column.high, may_miss=column.missing)
    size = len(column.values) or column.buckets
    if bool(column.values) == bool(column.buckets) or len(set(column.values)) < len(column.values):
        raise Misuse(f"column {column.name!r} has either a list of values or hash buckets")
    return Column(column.name, 0.0, float(size), size, column.values, column.missing)


def _read(table: Table, column: Column) -> NDArray[np.float64]:
    """float64[N]: numbers, or codes of categories; not-a-number where a cell is empty."""
    if not column.categories:
        empty = float("nan") if column.may_miss else None
        return table.numbers(column.name, missing=empty, bounds=(column.low, column.high))
    known = {label: float(code) for code, label in enumerate(column.labels)}
    texts = table.texts(column.name, may_miss=column.may_miss)
    codes = {text: _code(text, column, known) for text in set(texts)}
    return np.array([codes[text] for text in texts])


def _code(text: str, column: Column, known: dict[str, float]) -> float:
    if not text:
        return float("nan")
    if known:
        return known.get(text, float(column.other))
    digest = hashlib.sha256(f"fedflow/1 category\0{column.name}\0{text}".encode()).digest()
    return float(int.from_bytes(digest[:8], "big") % column.categories)


def _linear(inputs: int, outputs: int) -> torch.nn.Linear:
    # skip_init: the usual constructor would draw weights from torch's global generator
    layer: torch.nn.Linear = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
        torch.nn.Linear, inputs, outputs
    )
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return layer


def _spread(layer: torch.nn.Linear, csprng: Csprng) -> None:
    """Public weights, uniform within plus or minus 1/sqrt(inputs), as torch would draw them."""
    words = np.frombuffer(csprng.bytes(4 * layer.weight.numel()), "<u4")
    values = (words / 2.0**31 - 1.0) / layer.in_features**0.5
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(values).view_as(layer.weight))


_YES_NO = ("0", "1")
#: RAND Health Insurance Experiment, columns as they are in the file (``fedflow/data/randhie.md``),
#: with the empty cells of the health index, which the workload ``randhie`` takes imputed.
randhie_table = Tabular(
    "randhie-table",
    unit_column="zper",
    label="any_visit",
    columns=[
        Numeric("xage", 0, 66),
        Numeric("income", 0, 30_000),
        Numeric("educdec", 0, 25),
        Numeric("num", 1, 20),
        Numeric("time", 0, 1, missing=False),
        Numeric("mhi", 0, 100),
        Numeric("disea", 0, 60),
        Numeric("ghindx", 0, 100),
        Numeric("physlm", 0, 1),
        Numeric("mdeoff", 0, 1_000),
        Categorical("coins", values=("0", "25", "50", "95", "100")),
        Categorical("year", values=("1", "2", "3", "4", "5"), missing=False),
        Categorical("female", values=_YES_NO),
        Categorical("child", values=_YES_NO),
        Categorical("tookphys", values=_YES_NO),
        Categorical("hlthg", values=_YES_NO),
        Categorical("hlthf", values=_YES_NO),
        Categorical("hlthp", values=_YES_NO),
        Numeric("black", 0, 1),
    ],
    reference_persons=800,
    model="mlp",
    max_rows=5,
    score_range=(0.3, 0.95),
)
