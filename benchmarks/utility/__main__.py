"""The command line of ``python -m benchmarks.utility``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.data.fetch import SOURCES
from benchmarks.figures import Report, machine, show
from benchmarks.parts import Parts, add_part_options, rows_of, status_of
from benchmarks.utility.anchors import anchor_rows
from benchmarks.utility.effect import effect_rows
from benchmarks.utility.grid import EPSILONS, TASKS, grid_rows
from benchmarks.utility.plot import drawn
from benchmarks.utility.rates import save, tune

LIBRARIES = ("numpy", "torch", "opacus", "dp-accounting")
PARTS: Parts = {"grid": grid_rows, "effect": effect_rows, "anchors": anchor_rows}

ABOUT = """What privacy costs in score: DP-SGD on pooled data, summed noise, local noise, each site
alone, and no privacy, on RAND HIE, Boston housing and MNIST."""

EXAMPLES = """examples:
  make data-mnist data-boston                     the data, once
  python -m benchmarks.utility --quick            every row, small
  python -m benchmarks.utility --json             every row at the size of the bars
  python -m benchmarks.utility --only effect      one part

Epsilon is the guarantee of one unit against the server working with the colluders of the setting
(local noise: against everybody else; pooled data: against all but the one who has them), composed
by privacy loss distributions, for neighbours of whom one lacks the unit. Scores are those of the
last model, but of ten models the best on the test data for methods without privacy.
"""


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        "python -m benchmarks.utility",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_part_options(made, PARTS, "few rounds and seeds, fewer images")
    made.add_argument("--tune", action="store_true", help="choose the learning rates anew")
    made.add_argument("--plot", type=Path, metavar="FILE", help="also draw the grid, as SVG")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status: 1 when a training failed, 2 for missing data."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser().parse_args(given)
    report = Report(" ".join(["python -m benchmarks.utility", *given]), machine(LIBRARIES))

    def work() -> None:
        for source in SOURCES.values():
            for inside in source.files:
                source.path(Path(inside).name)
        if chosen.tune:
            save(tune(TASKS, EPSILONS))
        else:
            report.add(rows_of(PARTS, chosen))

    if (status := status_of(work)) or chosen.tune:
        return status
    if chosen.plot:
        chosen.plot.write_text(drawn(report.rows), encoding="utf-8")
    show(report, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
