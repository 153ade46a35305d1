"""Boston housing with its 92 towns: 506 tracts (Gilley and Pace, 1996, as R's mlbench has it).

Needs ``pip install pyreadr==0.5.8 pandas`` and dpkg, once; nothing of the package is installed
or run.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from benchmarks.data.fetch import TOWNS, DataMissing
from fedflow.workloads.housing import COLUMNS

_INSIDE = "usr/lib/R/site-library/mlbench/data/BostonHousing2.rda"
Tract = dict[str, str]


def load_towns() -> list[tuple[str, list[Tract]]]:
    """Towns in the file's order, which follows the map, each with its tracts as texts by column."""
    try:
        import pyreadr  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        what = "R's file is read by pyreadr: pip install pyreadr==0.5.8 pandas"
        raise DataMissing(what) from None
    (name,) = TOWNS.files
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg", "-x", TOWNS.path(name), folder], check=True)
        (frame,) = pyreadr.read_r(str(Path(folder) / _INSIDE)).values()
    towns: dict[str, list[Tract]] = {}
    for number, row in enumerate(frame.to_dict("records")):
        tract = {"tract": str(number), "town": str(row["town"]), "medv": f"{row['cmedv']:g}"}
        towns.setdefault(tract["town"], []).append(
            tract | {column: f"{float(row[column]):g}" for column in COLUMNS}
        )
    return list(towns.items())


def grouped(towns: list[tuple[str, list[Tract]]], sites: int) -> list[list[Tract]]:
    """Neighbouring towns as ``sites`` sites of about as many tracts; no town is divided.

    Towns are taken in the file's order; a site is full when its share of all tracts is reached.
    """
    total = sum(len(tracts) for _, tracts in towns)
    out: list[list[Tract]] = [[] for _ in range(sites)]
    before = 0
    for _, tracts in towns:
        middle = before + len(tracts) / 2
        out[min(int(middle * sites / total), sites - 1)] += tracts
        before += len(tracts)
    return out
