"""``fedflow audit``: check afterwards, offline, trusting no server."""

from __future__ import annotations

import json
from contextlib import nullcontext
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
    roster: Annotated[
        Path | None,
        typer.Option(help="Your own copy of the parties' keys; else the folder's is believed."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for machines.")] = False,
) -> None:
    """Check signatures, sums, models, ledgers and ε. Exit status 1 when anything is wrong.

    Without --roster this proves that the records agree with each other, not who the parties are.
    """
    console = Console(stderr=True)
    quiet = as_json or not console.is_terminal
    with nullcontext() if quiet else console.status("verifying") as status:
        report = verify_folder(
            folder,
            roster=roster,
            progress=lambda step: status.update(f"verifying {step}") if status else None,
        )
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        Console().print(render_report(report))
    if not report.ok:
        raise typer.Exit(1)
