"""A benchmark in parts: which of them are run, and what is said when one cannot be."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping

from benchmarks.data.fetch import DataMissing
from benchmarks.figures import Row, WrongResult, add_form_options, say
from benchmarks.utility.report import Amount
from fedflow.errors import Aborted, Refusal, Violation

Parts = Mapping[str, Callable[[Amount], Iterator[Row]]]


def add_part_options(parser: argparse.ArgumentParser, parts: Parts, quick: str) -> None:
    """The options of all benchmarks in parts; ``quick`` says what is smaller then."""
    parser.add_argument(
        "--only", choices=tuple(parts), action="append", help="one part; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    add_form_options(parser)


def rows_of(parts: Parts, chosen: argparse.Namespace) -> Iterator[Row]:
    """The rows of the parts that :func:`add_part_options` let a person choose."""
    for part, rows in parts.items():
        if not chosen.only or part in chosen.only:
            yield from rows(Amount(chosen.quick))


def status_of(work: Callable[[], None]) -> int:
    """Do it; the exit status: 1 when a training failed, 2 for missing data, and why on stderr."""
    try:
        work()
    except (DataMissing, Refusal) as unable:
        say(f"no figures: {unable}")
        return 2
    except (Aborted, Violation, WrongResult) as failed:
        say(f"no figures, a training failed: {failed}")
        return 1
    return 0
