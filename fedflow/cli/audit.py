"""``fedflow audit``: check afterwards, offline, trusting no server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedflow.audit.render import render_report
from fedflow.audit.verify import verify_folder

app = typer.Typer(help="Verify what a job left behind.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """Verify what a job left behind."""


@app.command(epilog="Example: fedflow audit verify ./fedflow-demo-20261121-120000")
def verify(
    folder: Annotated[Path, typer.Argument(help="A job's folder: exchange, ledgers and roster.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for machines.")] = False,
) -> None:
    """Check signatures, sums, models, ledgers and ε. Exit status 1 when anything is wrong."""
    report = verify_folder(folder)
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        Console().print(render_report(report))
    if not report.ok:
        raise typer.Exit(1)
