"""Pictures of how data lie at sites: ``python -m benchmarks.learning.partitions --out FILE.svg``.

MNIST dealt to 20 sites in three ways, and the RAND Health Insurance Experiment as its six places
hold it. Needs MNIST (``make data-mnist``).
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.fetch import DataMissing
from benchmarks.data.mnist import load_mnist
from fedflow.crypto.csprng import Csprng
from fedflow.learning.randhie import LABEL, vendored_table
from fedflow.simulation import partition
from fedflow.simulation.partition_picture import Panel, drawn

SITES = 20


def panels() -> list[Panel]:
    """All four; DataMissing without MNIST."""
    digits: NDArray[np.uint8] = load_mnist()[0].labels
    seed = Csprng.from_seed(bytes(32))
    names = [str(number + 1) for number in range(SITES)]
    ways = {
        "MNIST, IID": partition.iid(len(digits), SITES, seed.child("iid")),
        "MNIST, two shards a site": partition.shards(digits, SITES, 2, seed.child("shards")),
        "MNIST, Dirichlet, α = 0.1": partition.dirichlet(
            digits, SITES, 0.1, seed.child("dirichlet")
        ),
    }
    made = [
        Panel(title, partition.holdings(digits, parts), names, [str(d) for d in range(10)])
        for title, parts in ways.items()
    ]
    return [*made, randhie()]


def randhie() -> Panel:
    """The vendored table by site: person-years without and with a visit."""
    rows = list(csv.DictReader(io.StringIO(vendored_table().decode())))
    labels = np.array([int(float(row[LABEL])) for row in rows])
    parts = partition.by_key([row["site"] for row in rows])
    counts = partition.holdings(labels, list(parts.values()))
    names = [f"site-{site}" for site in parts]
    return Panel("RAND HIE, by place", counts, names, ["no visit", "a visit"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture; exit status 2 for missing data."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.learning.partitions", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="the SVG file to write")
    chosen = parser.parse_args(arguments)
    try:
        picture = drawn(panels())
    except DataMissing as unable:
        print(f"no picture: {unable}", file=sys.stderr)
        return 2
    chosen.out.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
