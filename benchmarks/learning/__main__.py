"""The command line of ``python -m benchmarks.learning``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Report, machine, show
from benchmarks.learning.boston import boston_rows
from benchmarks.learning.dirichlet import dirichlet_rows
from benchmarks.learning.mails import mail_rows
from benchmarks.learning.missing import missing_rows
from benchmarks.learning.personal import personal_rows
from benchmarks.learning.plot import drawn
from benchmarks.learning.rounds import iid_rows, shard_rows
from benchmarks.learning.straggler import straggler_rows
from benchmarks.learning.trees import tree_rows
from benchmarks.parts import Parts, add_part_options, rows_of, status_of

LIBRARIES = ("numpy", "torch")
PARTS: Parts = {
    "rounds": iid_rows,
    "shards": shard_rows,
    "dirichlet": dirichlet_rows,
    "straggler": straggler_rows,
    "boston": boston_rows,
    "missing": missing_rows,
    "mails": mail_rows,
    "trees": tree_rows,
    "personal": personal_rows,
}

EXAMPLES = """examples:
  make data-mnist                                 the data, once
  python -m benchmarks.learning --quick           small, some minutes
  python -m benchmarks.learning --only rounds     one part; all are hours
  python -m benchmarks.learning.plot ROWS.json    draw the curves of earlier runs
"""


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        "python -m benchmarks.learning",
        description="How fast and how well methods learn, with secure aggregation on.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_part_options(made, PARTS, "fewer sites, images and rounds")
    made.add_argument("--plot", type=Path, metavar="FILE", help="also draw the curves, as SVG")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status: 1 when a training failed, 2 for missing data."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser().parse_args(given)
    report = Report(" ".join(["python -m benchmarks.learning", *given]), machine(LIBRARIES))
    if status := status_of(lambda: report.add(rows_of(PARTS, chosen))):
        return status
    if chosen.plot:
        chosen.plot.write_text(drawn({row.name: row.curve for row in report.rows}))
    show(report, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
