"""``fedflow job learned``: centres, coefficients, quantiles, for a person."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedflow.coordinator.job import load_job
from fedflow.coordinator.settings import open_coordinator
from fedflow.errors import Refusal
from fedflow.exchange import layout
from fedflow.exchange.base import get_blob, unreachable
from fedflow.federation.job_view import view

if TYPE_CHECKING:
    from fedflow.learning.methods.learned import LearnedTable

#: Columns of the terminal that a number takes, with what parts it from the next.
_NUMBER = 12


def show_learned(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    coordinator: Annotated[Path, typer.Option("--coordinator", help="The coordinator's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print facts for machines.")] = False,
) -> None:
    """What a method without a gradient has learned so far: centres, coefficients, quantiles.

    Only reads the model file, which is released already: it costs no budget.
    """
    try:
        tables = _tables(job, coordinator)
    except OSError as error:
        raise unreachable(error) from None
    if as_json:
        typer.echo(json.dumps([table.facts() for table in tables]))
        return
    show(tables, Console())


def _tables(job: str, coordinator: Path) -> list[LearnedTable]:
    # torch: not needed for --help, and not there without the extra
    from fedflow.learning.first_model import decode_state
    from fedflow.learning.methods.learned import learned
    from fedflow.learning.workload import find_workload

    opened = open_coordinator(coordinator)
    loaded = load_job(opened.exchange, job, opened.authority)
    plan, workload = loaded.plan, find_workload(loaded.plan.plan.workload)
    digest = bytes.fromhex(view(opened, job).model)
    data = get_blob(opened.exchange, layout.blob(job, digest), digest, layout.MAX_MODEL_BYTES)
    if data is None:
        raise Refusal("no-model", f"the model of {job} is not in the exchange any more")
    return learned(decode_state(data, workload, plan), workload, plan)


def show(tables: Sequence[LearnedTable], console: Console) -> None:
    """Print ``tables``, those that are too wide in parts side by side below each other."""
    for table in tables:
        first = max(len(str(row[0])) for row in table.rows) + 2
        room = max(1, (console.width - first) // _NUMBER)
        for at in range(1, len(table.headings), room):
            console.print(_shown(table, slice(at, at + room)))


def _shown(table: LearnedTable, columns: slice) -> Table:
    """The first column and the ``columns``."""
    out = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column(table.headings[0], no_wrap=True)
    for heading in table.headings[columns]:
        out.add_column(heading, justify="right")
    for row in table.rows:
        cells = (row[0], *row[columns])
        out.add_row(*(cell if isinstance(cell, str) else f"{cell:.4g}" for cell in cells))
    return out
