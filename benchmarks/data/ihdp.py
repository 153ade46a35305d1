"""IHDP: infants of low birth weight at eight medical centres, and their IQ at three years.

Infant Health and Development Program (Brooks-Gunn, Liaw and Klebanov, Journal of Pediatrics 1992),
as it is in econml 0.17.0 (MIT licence). The task is whether the Stanford-Binet IQ at 36 months is
under 85, of the 908 infants whose IQ was taken. Only what was known at birth and who was assigned
to the programme are features; everything later is left out.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.fetch import IHDP

FILE = "example_full.csv"
#: Column -> its public bounds, from what it means. An empty cell of these is a missing value.
NUMERIC: dict[str, tuple[float, float]] = {
    "bw": (500.0, 2500.0),  # birth weight in grams: at most 2500 to be enrolled
    "b.length": (25.0, 55.0),  # cm
    "b.head": (15.0, 40.0),  # cm around
    "ga.anal": (24.0, 40.0),  # weeks of gestation
    "nnhealth": (0.0, 150.0),  # index of neonatal health, mean 100
    "apgar1": (0.0, 10.0),
    "apgar5": (0.0, 10.0),
    "momage": (10.0, 50.0),  # years
    "birth.o": (1.0, 10.0),  # of the child among its mother's
    "nkids": (1.0, 10.0),
    "moreprem": (0.0, 10.0),  # other children born too early
    "cigs": (0.0, 60.0),  # a day
    "alcohol": (0.0, 30.0),  # drinks a week
    "ppvtmom": (40.0, 160.0),  # the mother's score in a test of vocabulary
}
#: Column -> its possible values, as in the file.
CATEGORICAL: dict[str, tuple[str, ...]] = {
    "momed": ("1", "2", "3", "4", "5"),  # the mother's schooling, in steps
    "momrace": ("1", "2", "3", "4", "5"),
    "b.marry": ("1", "2", "3", "4"),
    "livwho": ("1", "2", "3", "4"),
    "language": ("1", "2", "3", "4"),
    "whenpren": ("0", "1", "2", "3"),  # when prenatal care began
    "drugs": ("1", "2"),
    "work.dur": ("0", "1"),  # the mother worked while she was pregnant
    "female": ("0", "1"),
    "twin": ("0", "1"),
    "treat": ("0", "1"),  # assigned to the programme
}
UNIT, CENTRE, LABEL, IQ, LOW = "id", "site", "low_iq", "iqsb.36", 85.0
CENTRES = tuple("12345678")


@dataclass(frozen=True)
class Infants:
    """``x`` float32[N, F] in -3..3, ``y`` float32[N] (1: IQ under 85), ``centre`` int64[N] 1 to 8.

    ``ids`` are the N infants'. Missing values are 0, the middle of the column's bounds.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    centre: NDArray[np.int64]
    ids: tuple[str, ...]


def load_ihdp() -> Infants:
    """All 908 infants on fixed public features; DataMissing when they were not fetched."""
    rows = _rows()
    columns = []
    for name, (low, high) in NUMERIC.items():
        values = np.array([float(row[name] or (low + high) / 2) for row in rows])
        columns.append((values - (low + high) / 2) / ((high - low) / 6))
    for name, values_known in CATEGORICAL.items():
        for value in values_known[1:]:
            columns.append(np.array([float(row[name] == value) for row in rows]))
    columns.append(np.ones(len(rows)))
    return Infants(
        np.clip(np.stack(columns, axis=1), -3.0, 3.0).astype(np.float32),
        np.array([row[LABEL] for row in rows], np.float32),
        np.array([int(row[CENTRE]) for row in rows]),
        tuple(row[UNIT] for row in rows),
    )


def centre_tables() -> dict[str, bytes]:
    """Centre -> CSV bytes of its infants with raw values, missing ones as empty cells."""
    rows, names = _rows(), [UNIT, CENTRE, *NUMERIC, *CATEGORICAL, LABEL]
    out = {}
    for centre in CENTRES:
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in rows if row[CENTRE] == centre)
        out[centre] = text.getvalue().encode()
    return out


def _rows() -> list[dict[str, str]]:
    text = IHDP.path(FILE).read_text("utf-8")
    kept = []
    for row in csv.DictReader(io.StringIO(text)):
        if row[IQ] == "NA":
            continue
        used = {name: row[name] for name in (UNIT, CENTRE, *NUMERIC, *CATEGORICAL)}
        cells = {name: "" if value == "NA" else value for name, value in used.items()}
        kept.append(cells | {LABEL: str(int(float(row[IQ]) < LOW))})
    return kept
