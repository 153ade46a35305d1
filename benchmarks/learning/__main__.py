"""The command line of ``python -m benchmarks.learning``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.data.fetch import DataMissing
from benchmarks.figures import Report, Row, add_form_options, machine, say, show
from benchmarks.learning.personal import personal_rows
from benchmarks.learning.rounds import round_rows
from benchmarks.utility.report import Amount
from fedflow.errors import Aborted, Refusal, Violation

LIBRARIES = ("numpy", "torch")
PARTS: Mapping[str, Callable[[Amount], Iterator[Row]]] = {
    "rounds": round_rows,
    "personal": personal_rows,
}

EXAMPLES = """examples:
  make data-mnist                                 the data, once
  python -m benchmarks.learning --quick           small, about a minute
  python -m benchmarks.learning --json            at the size of the bars: about two hours
"""


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        "python -m benchmarks.learning",
        description="How many rounds methods need to an accuracy, with secure aggregation on.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--only", choices=tuple(PARTS), action="append", help="one part; repeatable")
    made.add_argument("--quick", action="store_true", help="20 sites, fewer images and rounds")
    add_form_options(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status: 1 when a training failed, 2 for missing data."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser().parse_args(given)
    report = Report(" ".join(["python -m benchmarks.learning", *given]), machine(LIBRARIES))
    try:
        for part, rows in PARTS.items():
            if not chosen.only or part in chosen.only:
                report.add(rows(Amount(chosen.quick)))
    except (DataMissing, Refusal) as unable:
        say(f"no figures: {unable}")
        return 2
    except (Aborted, Violation) as failed:
        say(f"no figures, a training failed: {failed}")
        return 1
    show(report, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
