"""Entry point of the command ``fedflow``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import fedflow
from fedflow.cli import (
    audit,
    coordinator,
    enrol,
    exchange,
    federation,
    job,
    ledger,
    overlap,
    plan,
    prefect,
    site,
    workload,
)
from fedflow.cli.demo import demo
from fedflow.cli.doctor import doctor
from fedflow.errors import FedflowError, Misuse, Violation
from fedflow.extras import explain

EXIT_REFUSED, EXIT_BUG, EXIT_INTERRUPTED = 2, 3, 130

app = typer.Typer(
    name="fedflow",
    help="Privacy-hardened federated learning, orchestrated by Prefect. Try: fedflow demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command(epilog="Example: fedflow demo --drop-site site-3 --keep-server")(demo)
app.command(epilog="Example: fedflow doctor ./site-berlin")(doctor)
app.add_typer(plan.app, name="plan")
app.add_typer(federation.app, name="federation")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(job.app, name="job")
enrol.add_commands(site.app)
site.app.add_typer(overlap.app, name="overlap")
app.add_typer(site.app, name="site")
app.add_typer(ledger.app, name="ledger")
app.add_typer(audit.app, name="audit")
app.add_typer(prefect.app, name="prefect")
app.add_typer(exchange.app, name="exchange")
app.add_typer(workload.app, name="workload")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedflow {fedflow.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command; turn deliberate errors into one readable message and an exit status."""
    try:
        app()
    except FedflowError as error:
        word = {Violation: "not valid", Misuse: "internal error"}.get(type(error), "refused")
        Console(stderr=True).print(Text.assemble((f"fedflow: {word}: ", "bold red"), str(error)))
        sys.exit(EXIT_BUG if isinstance(error, Misuse) else EXIT_REFUSED)
    except ModuleNotFoundError as error:
        if (what := explain(error)) is None:
            raise
        Console(stderr=True).print(Text.assemble(("fedflow: refused: ", "bold red"), what))
        sys.exit(EXIT_REFUSED)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this, without a word
            Console(stderr=True).print("fedflow: interrupted; everything it started has ended")
        raise


if __name__ == "__main__":
    main()
