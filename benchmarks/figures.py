"""What every benchmark reports: rows with a name, a median, and the bar they are held to."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import operator
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

LIBRARIES = ("cryptography", "numpy")
ROOMY = 150  #: columns of a terminal that has room for notes
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_BAR = re.compile(r"(<=|>=|<|>) (-?[0-9.]+)")


class WrongResult(Exception):
    """What was timed gave a wrong answer: no figure may come of it."""


def meets(value: float, bar: str) -> bool:
    """Whether ``value`` keeps a bar such as ``"<= 1.3"``; ValueError for another form."""
    match = _BAR.fullmatch(bar)
    if match is None:
        raise ValueError(f"a bar reads like '<= 1.3', not {bar!r}")
    return _COMPARE[match[1]](value, float(match[2]))


@dataclass(frozen=True)
class Row:
    """One figure. ``value`` is the median of ``runs``.

    ``size`` says at what size it was taken. ``judged`` is false where that is not the size the bar
    is about: such a row is neither met nor missed. ``curve`` is how it came about, as points
    (x, y) of a plot.
    """

    name: str
    unit: str
    runs: tuple[float, ...]
    bar: str | None = None
    size: str = ""
    note: str = ""
    judged: bool = True
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def value(self) -> float:
        """The median of the runs."""
        return statistics.median(self.runs)

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without a bar or at another size than the bar's."""
        return meets(self.value, self.bar) if self.bar and self.judged else None

    @property
    def bar_shown(self) -> str:
        """The bar for a person: times with their unit, as values are shown in ms."""
        return f"{self.bar or ''}{' s' if self.bar and self.unit == 's' else ''}"

    def as_json(self) -> dict[str, Any]:
        """The row as the JSON object holds it: six significant digits are more than it can tell."""
        row = {
            "name": self.name,
            "value": _digits(self.value),
            "unit": self.unit,
            "bar": self.bar,
            "met": self.met,
            "runs": [_digits(run) for run in self.runs],
            "size": self.size,
            "note": self.note,
        }
        if self.curve:
            row["curve"] = [[_digits(x), _digits(y)] for x, y in self.curve]
        return row


@dataclass
class Report:
    """All rows of one command on one machine."""

    command: str
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows in, telling each on stderr as it comes."""
        for row in rows:
            self.rows.append(row)
            say(f"{row.name} = {shown(row.value, row.unit)}")

    def json(self) -> str:
        """The one JSON object of the benchmark."""
        rows = [row.as_json() for row in self.rows]
        return json.dumps(
            {"machine": self.machine, "command": self.command, "rows": rows}, indent=1
        )

    def markdown(self) -> str:
        """The table as ``docs/benchmarks.md`` shows it."""
        words = {True: "yes", False: "**no**", None: ""}
        lines = ["| figure | value | bar | met | size and note |", "|---|---|---|---|---|"]
        for row in self.rows:
            about = "; ".join(part for part in (row.size, row.note) if part)
            bar = row.bar_shown.replace("<=", "≤").replace(">=", "≥")
            value = shown(row.value, row.unit)
            lines.append(f"| `{row.name}` | {value} | {bar} | {words[row.met]} | {about} |")
        return "\n".join(lines)

    def print_table(self, console: Console) -> None:
        """The rows for a person; below them the machine. Notes only where there is room."""
        table = Table(title=self.command, title_justify="left")
        table.add_column("figure", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("bar", no_wrap=True)
        table.add_column("met")
        table.add_column("size")
        roomy = console.width >= ROOMY
        if roomy:
            table.add_column("note")
        words = {True: "yes", False: "NO", None: ""}
        for row in self.rows:
            cells = [row.name, shown(row.value, row.unit), row.bar_shown, words[row.met], row.size]
            table.add_row(*cells, *([row.note] if roomy else []))
        console.print(table)
        console.print(", ".join(f"{key} {value}" for key, value in self.machine.items()))


def add_form_options(parser: argparse.ArgumentParser) -> None:
    """The options that say in which form the rows are printed, the same for all benchmarks."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print the table for the docs")


def show(report: Report, chosen: argparse.Namespace) -> None:
    """Print ``report`` in the form that was chosen by :func:`add_form_options`."""
    if chosen.json:
        print(report.json())
    elif chosen.markdown:
        print(report.markdown())
    else:
        report.print_table(Console())


def shown(value: float, unit: str) -> str:
    """A value with its unit, four digits; short times in ms."""
    if unit == "s" and value < 1:
        value, unit = 1000 * value, "ms"
    return f"{value:.4g} {unit}"


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def say(text: str) -> None:
    """Progress: on stderr, so that stdout holds the result only."""
    print(text, file=sys.stderr, flush=True)


def machine(libraries: Iterable[str] = LIBRARIES) -> dict[str, Any]:
    """What the figures were taken on, and how busy it was."""
    facts: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
    return facts | {name: importlib.metadata.version(name) for name in libraries}


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
