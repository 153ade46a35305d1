"""``fedflow prefect``: what fedflow has on a Prefect server, and how to put it there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedflow.errors import InputError
from fedflow.report.tables import plain_table

T = TypeVar("T")

app = typer.Typer(
    help="Deployments, automations and runs on the Prefect server of PREFECT_API_URL.",
    no_args_is_help=True,
)


@app.callback()
def prefect() -> None:
    """Deployments, automations and runs on the Prefect server of PREFECT_API_URL."""


@app.command(epilog="Example: fedflow prefect deploy --only training --only nightly")
def deploy(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only the deployment of this name; may be given several times."),
    ] = None,
) -> None:
    """Make the coordinator's work pool and deploy the shipped flows. No schedule becomes active.

    The same as prefect deploy --all with the packaged flows/prefect.yaml. Copy that file to change
    schedules, and deploy the copy with prefect itself.
    """
    from fedflow.orchestration.deploying import POOL, deploy_all, make_pool

    console = Console(stderr=True)
    made = _run(make_pool())
    console.print(f"work pool {POOL}: {'created' if made else 'there already'}", highlight=False)
    with console.status("deploying"):
        deploy_all(tuple(only or ()))
    _show_deployments()
    console.print(
        "start its worker on the coordinator's machine:\n"
        f"  FEDFLOW_COORDINATOR=FOLDER prefect worker start --type process --pool {POOL}",
        markup=False,
        highlight=False,
    )


@app.command(epilog="Example: fedflow prefect status")
def status() -> None:
    """Show work pools, deployments, the newest runs and automations of fedflow."""
    from fedflow.orchestration.deploying import overview

    seen, console = _run(overview()), Console()
    console.print(_table("Work pools", ("pool", "type", ""), seen.pools))
    console.print(_table("Deployments", ("deployment", "pool", ""), seen.deployments))
    console.print(_table("Newest runs", ("run", "state", ""), seen.runs))
    console.print(_automations(seen.automations))


@app.command(
    epilog="Example: fedflow prefect automations --install --notify slack-webhook/privacy-office"
)
def automations(
    install: Annotated[bool, typer.Option("--install", help="Create or repair them.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Delete those of fedflow.")] = False,
    show: Annotated[bool, typer.Option("--show", help="List them. The default.")] = False,
    silence: Annotated[
        float,
        typer.Option(
            min=10, max=86_400, help="Seconds without a heartbeat: a coordinator is gone."
        ),
    ] = 90.0,
    notify: Annotated[
        str | None,
        typer.Option(help="Tell people through this notification block, as type/name."),
    ] = None,
    pause: Annotated[
        list[str] | None,
        typer.Option(help="Pause this deployment when a budget is nearly spent; several times."),
    ] = None,
) -> None:
    """Resume coordinators that died, and tell people of budgets, refusals and aborted jobs.

    Without --notify nobody is told, without --pause nothing is paused. Heartbeats come every 30
    seconds where flows/prefect.yaml is deployed: --silence should be three of them.
    """
    from fedflow.orchestration import automations as module

    if install + remove + show > 1:
        raise InputError("choose one of --show, --install and --remove", field="fedflow prefect")
    console = Console()
    if install:
        wishes = module.Wishes(silence, notify, tuple(pause or ()))
        done = _run(module.install(wishes))
    elif remove:
        done = _run(module.remove())
    else:
        console.print(_automations(_run(module.installed())))
        return
    console.print(_table("Automations", ("automation", ""), list(done.items())))


def _show_deployments() -> None:
    from fedflow.orchestration.deploying import overview

    rows = _run(overview()).deployments
    Console().print(_table("Deployments", ("deployment", "pool", ""), rows))


def _automations(rows: Sequence[tuple[str, str, bool]]) -> Table:
    told = [(name, about, "" if on else "switched off") for name, about, on in rows]
    return _table("Automations", ("automation", "", ""), told)


def _table(title: str, names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = plain_table(title)
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    if not rows:
        table.add_row("none")
    return table


def _run(work: Coroutine[Any, Any, T]) -> T:
    from fedflow.orchestration.deploying import answered

    return asyncio.run(answered(work))
