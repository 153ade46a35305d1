"""Any physician visit in the year, from the RAND Health Insurance Experiment.

A logistic regression on public, fixed features. Centres, scales and fill-in values are constants
from the documented meaning of the columns (``fedflow/data/randhie.md``): eligibility ended at age
65, incentives and expenditure offers went to about 1,000 dollars, health indices run 0 to 100. None
is computed from a site's data, which would be a release of its own. Visits fall from birth to the
teens and rise again, more for women, so age enters as a piecewise-linear curve per sex.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedflow.learning.randhie_cuts import AGE_CUTS, CUTS
from fedflow.learning.table import Table
from fedflow.learning.workload import PersonData, group_by_person

LABEL = "any_visit"
MAX_ROWS = 5  # the experiment ran for three or five years

#: column -> (centre, scale): the feature is (value - centre) / scale, clamped to -3..3.
NUMERIC: dict[str, tuple[float, float]] = {
    "logc": (0.0, 4.6),
    "idp": (0.0, 1.0),
    "lpi": (0.0, 7.0),
    "fmde": (0.0, 8.3),
    "physlm": (0.0, 1.0),
    "disea": (11.0, 15.0),
    "hlthg": (0.0, 1.0),
    "hlthf": (0.0, 1.0),
    "hlthp": (0.0, 1.0),
    "linc": (8.7, 1.5),
    "lfam": (1.2, 1.0),
    "educdec": (12.0, 4.0),
    "female": (0.0, 1.0),
    "black": (0.0, 1.0),
    "time": (1.0, 1.0),
    "mhi": (75.0, 20.0),
    "xghindx": (75.0, 20.0),
    "tookphys": (0.0, 1.0),
    "year": (2.5, 1.5),
}
AGE_KNOTS = (0.0, 2.0, 6.0, 12.0, 18.0, 25.0, 35.0, 45.0, 55.0, 65.0)
AGE_KNOTS_FEMALE = (12.0, 18.0, 25.0, 35.0, 45.0, 65.0)
NAMES = (
    *NUMERIC,
    *("coins over 0", "first year"),
    *(f"age {knot:.0f}" for knot in AGE_KNOTS),
    *(f"female, age {knot:.0f}" for knot in AGE_KNOTS_FEMALE[1:-1]),
)
FEATURES = len(NAMES)


def _hats(values: NDArray[np.float64], knots: tuple[float, ...]) -> list[NDArray[np.float64]]:
    """Piecewise-linear basis functions: 1 at one knot, 0 at every other."""
    eye = np.eye(len(knots))
    return [np.interp(values, knots, eye[i]) for i in range(len(knots))]


def features(table: Table) -> NDArray[np.float32]:
    """float32[N, FEATURES] from a table with the columns of the vendored file."""
    out: list[NDArray[np.float64]] = []
    for column, (centre, scale) in NUMERIC.items():
        values = table.numbers(column, missing=centre)
        out.append(np.clip((values - centre) / scale, -3.0, 3.0))
    out.append((table.numbers("coins", missing=0.0) > 0).astype(np.float64))
    out.append((table.numbers("year") == 1).astype(np.float64))
    age = table.numbers("xage", missing=25.0)
    female = table.numbers("female", missing=0.0)
    out += _hats(age, AGE_KNOTS)
    # The first and last of these curves would repeat the main effects.
    out += [female * hat for hat in _hats(age, AGE_KNOTS_FEMALE)[1:-1]]
    return np.stack(out, axis=1).astype(np.float32)


class LogisticRegression(torch.nn.Module):
    """One linear score per row; the age curve carries the intercept. Starts at zero."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        # skip_init: the usual constructor would draw weights from torch's global generator
        self.linear = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
            torch.nn.Linear, inputs, 1, bias=False
        )
        torch.nn.init.zeros_(self.linear.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., F] to [..]."""
        scores: torch.Tensor = self.linear(x)
        return scores.squeeze(-1)


class RandHie:
    """The workload ``randhie``."""

    name = "randhie"
    dataset = "randhie"  # decides who is held out, also for other workloads on these rows
    unit_column = "zper"
    reference_persons = 800
    features = FEATURES
    feature_names = NAMES
    bounds = (-3.0, 3.0)
    target_bounds = (0.0, 1.0)
    classes = 2
    score_range = (0.4, 0.95)  # visits are common: about two person-years in three have one

    cuts = (
        *(
            tuple((cut - centre) / scale for cut in CUTS[column])
            for column, (centre, scale) in NUMERIC.items()
        ),
        AGE_CUTS,
    )

    def tree_features(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What trees divide by ``cuts``: the numeric columns, and age in years from its curve."""
        first = len(NUMERIC) + 2
        knots = np.array(AGE_KNOTS, np.float32)
        age = (x[..., first : first + len(AGE_KNOTS)] * knots).sum(axis=-1, keepdims=True)
        return np.concatenate([x[..., : len(NUMERIC)], age], axis=-1)

    def build_model(self) -> torch.nn.Module:
        """A logistic regression with zero weights."""
        return LogisticRegression(FEATURES)

    def load(self, path: str | Path) -> PersonData:
        """One site's rows; InputError for anything that cannot be used as they are."""
        used = dict.fromkeys([*NUMERIC, "coins", "year", "xage", "female"])
        table = Table(path, [self.unit_column, LABEL, *used])
        return group_by_person(
            features(table),
            table.numbers(LABEL, choices=(0.0, 1.0)).astype(np.float32),
            table.identifiers(self.unit_column),
            dataset=self.dataset,
            max_rows=MAX_ROWS,
            where=table.where,
        )

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats per row."""
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")


workload = RandHie()


def vendored_table() -> bytes:
    """The CSV bytes of the packaged data of all six sites."""
    packed = resources.files("fedflow") / "data" / "randhie.csv.gz"
    return gzip.decompress(packed.read_bytes())


def partition_sites(table: bytes, column: str = "site") -> dict[str, bytes]:
    """The CSV split by the values of ``column``: value -> CSV bytes with the same header."""
    return _split(table, column, lambda value: value)


def deal_persons(table: bytes, sites: int) -> dict[str, bytes]:
    """The CSV dealt to so many sites alike, numbered from 1: each person, by a hash, to one."""

    def dealt(person: str) -> str:
        digest = hashlib.sha256(b"fedflow/1 dealt\0" + person.encode()).digest()
        return str(int.from_bytes(digest[:8], "big") % sites + 1)

    return _split(table, RandHie.unit_column, dealt)


def _split(table: bytes, column: str, site_of: Callable[[str], str]) -> dict[str, bytes]:
    head, *rows = csv.reader(io.StringIO(table.decode("utf-8")))
    at = head.index(column)
    groups: dict[str, list[list[str]]] = {}
    for row in rows:
        groups.setdefault(site_of(row[at]), []).append(row)
    out: dict[str, bytes] = {}
    for value in sorted(groups):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(groups[value])
        out[value] = text.getvalue().encode("utf-8")
    return out
