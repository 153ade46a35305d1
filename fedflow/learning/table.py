"""Reads a CSV table (plain or gzipped) of numbers, and says which row and column is wrong."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import InputError

MAX_ROWS = 10_000_000


class Table:
    """The rows of a CSV file as text, with checked access by column."""

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        """Read ``columns``; InputError when the file or one of them is missing, or has no rows."""
        self.where = str(path)
        self._columns: dict[str, list[str]] = {}
        try:
            opener = gzip.open if self.where.endswith(".gz") else open
            with opener(path, "rt", encoding="utf-8", newline="") as file:
                self._read(csv.reader(file, strict=True), columns)
        except (OSError, EOFError, zlib.error) as err:
            why = getattr(err, "strerror", None) or "is cut short or damaged"
            raise InputError(f"the data file cannot be read: {why}", where=self.where) from None
        except UnicodeDecodeError:
            raise InputError("the data file is not UTF-8 text", where=self.where) from None
        except csv.Error as err:
            raise InputError(f"the data file is not valid CSV: {err}", where=self.where) from None

    def _read(self, reader: csv._reader, columns: Sequence[str]) -> None:  # type: ignore[name-defined]
        head = next(reader, None)
        if not head:
            raise InputError("the data file is empty", where=self.where)
        twice = sorted({name for name in columns if head.count(name) > 1})
        missing = [name for name in columns if name not in head]
        if missing or twice:
            problem = "is missing" if missing else "appears twice"
            names = ", ".join(missing or twice)
            raise InputError(f"column {names} {problem}", where=f"{self.where}:1")
        positions = [head.index(name) for name in columns]
        values: list[list[str]] = [[] for _ in columns]
        self.lines: list[int] = []
        for row in reader:
            if not row:
                continue
            if len(row) != len(head):
                raise InputError(
                    f"the row has {len(row)} values, the header {len(head)}",
                    where=f"{self.where}:{reader.line_num}",
                )
            if len(self.lines) == MAX_ROWS:
                raise InputError(f"more than {MAX_ROWS:,} rows", where=self.where)
            self.lines.append(reader.line_num)
            for column, position in zip(values, positions, strict=True):
                column.append(row[position])
        if not self.lines:
            raise InputError("the data file has no rows", where=self.where)
        self._columns = dict(zip(columns, values, strict=True))

    def __repr__(self) -> str:
        return f"Table({self.where!r}, <private>)"

    def identifiers(self, column: str) -> list[str]:
        """The column as non-empty text without surrounding blanks."""
        values = [value.strip() for value in self._columns[column]]
        if "" in values:
            raise self._bad(values.index(""), column, "is empty", "an identifier in every row")
        return values

    def texts(self, column: str, *, may_miss: bool) -> list[str]:
        """The column as text without surrounding blanks; empty cells only with ``may_miss``."""
        values = [value.strip() for value in self._columns[column]]
        if "" in values and not may_miss:
            raise self._bad(values.index(""), column, "is empty", "a value in every row")
        return values

    def numbers(
        self,
        column: str,
        *,
        missing: float | None = None,
        choices: Collection[float] | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> NDArray[np.float64]:
        """The column as float64[N]. An empty cell becomes ``missing``, or is refused without it."""
        allowed = f"one of {sorted(choices)}" if choices else "a finite number"
        if bounds is not None:
            allowed = f"a number from {bounds[0]:g} to {bounds[1]:g}"
        out = np.empty(len(self.lines))
        for row, text in enumerate(self._columns[column]):
            if missing is not None and not text.strip():
                out[row] = missing
                continue
            try:
                out[row] = float(text if "_" not in text else "")  # Python takes 1_000, we do not
            except ValueError:
                raise self._bad(row, column, f"{text[:40]!r} is not a number", allowed) from None
            outside = bounds is not None and not bounds[0] <= out[row] <= bounds[1]
            if not math.isfinite(out[row]) or outside or (choices and out[row] not in choices):
                raise self._bad(row, column, f"{text[:40]!r} cannot be used", allowed)
        return out

    def _bad(self, row: int, column: str, why: str, allowed: str) -> InputError:
        where = f"{self.where}:{self.lines[row]}"
        return InputError(why, where=where, field=f"column {column}", allowed=allowed)
