"""``fedflow site``: make a site, run its agent, look at it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedflow.cli.own_model import write_own_model
from fedflow.errors import InputError
from fedflow.extras import need
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.outlook import outlooks
from fedflow.site.agent import run_agent
from fedflow.site.config import SiteFolder, init_site, open_site
from fedflow.site.socket_protocol import LinkLost, SiteLink, Status

app = typer.Typer(
    help="Run a site: its data, policy and budget stay its own.", no_args_is_help=True
)
app.command(
    "model", epilog="Example: fedflow site model ./site-berlin spring-1 -o own.safetensors"
)(write_own_model)
Folder = Annotated[Path, typer.Argument(help="The site's folder.")]


@app.command(epilog="Example: fedflow site init ./site-berlin --label berlin --exchange /mnt/fed")
def init(
    folder: Folder,
    label: Annotated[str, typer.Option(help="The site's name in rosters and in Prefect.")],
    exchange: Annotated[
        str, typer.Option(help="The mailbox: folder, fsspec URL, relay. Joining sets it, too.")
    ] = "",
) -> None:
    """Make a site's folder: key, settings, a policy that accepts nothing yet, an empty ledger."""
    identity = init_site(folder, label=label, exchange=exchange)
    console = Console()
    console.print(f"site [bold]{label}[/] is ready in {folder}")
    console.print(f"  public key   {identity.public.hex()}")
    console.print(f"  fingerprint  {identity.public.fingerprint()}   (compare it by phone)")
    if exchange:
        console.print(f"next: edit {folder / 'policy.toml'}, then `fedflow site start {folder}`")
    else:
        console.print(f"next: `fedflow site request {folder}`, and send it to the authority")


@app.command(epilog="Example: fedflow site start ./site-berlin")
def start(
    folder: Folder,
    no_prefect: Annotated[
        bool, typer.Option("--no-prefect", help="Follow signed jobs in the exchange, no worker.")
    ] = False,
) -> None:
    """Run the site's agent until Ctrl-C or SIGTERM."""
    need("site")  # the training process needs torch; better said now than in the first round
    site = open_site(folder)
    console = Console(stderr=True)
    console.print(f"site [bold]{site.settings.label}[/]: agent starting, log in {site.log_path}")
    if not no_prefect:
        console.print(
            "start its worker, best as another user:\n"
            f"  FEDFLOW_SITE_SOCKET={site.socket} prefect worker start --type fedflow "
            f"--pool {site.settings.label} --install-policy never",
            soft_wrap=True,
        )
    run_agent(folder, without_prefect=no_prefect)


@app.command(epilog="Example: fedflow site status ./site-berlin --html budget.html")
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts for machines.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write the burn-down as a page of its own.")
    ] = None,
) -> None:
    """Show what the agent does, what is left of each budget, and how many more rounds it pays."""
    from fedflow.report import burndown  # plotly: time that other commands need not wait

    site = open_site(folder)
    label = site.settings.label
    ledger = Ledger.open(site.ledger_path, site.identity.public)
    accounts = outlooks(ledger.entries())
    agent = _agent_status(site.socket)
    if html is not None:
        try:
            burndown.write_burndown(label, accounts, html, datetime.now(UTC))
        except OSError as err:
            why = f"the page cannot be written: {err.strerror or err}"
            raise InputError(why, where=str(html), field="--html") from None
    if as_json:
        figures = [
            vars(ledger.account_status(account.name))
            | {
                "rounds_left": account.rounds_left,
                "burndown": [dataclasses.astuple(point) for point in account.points],
            }
            for account in accounts
        ]
        doing = agent.model_dump() if agent else None
        typer.echo(json.dumps({"label": label, "agent": doing, "accounts": figures}))
    else:
        _print_status(site, agent)
        burndown.print_status(Console(), accounts)
    ledger.close()


def _step(agent: Status) -> str:
    """How far the session is. Whoever waits long for an order asks the coordinator's people."""
    since = f"for {timedelta(seconds=agent.seconds or 0)}"
    if agent.phase in (None, "done"):
        after = f"round {agent.round} is done, " if agent.phase else ""
        return f"{after}waiting {since} for the coordinator's next order"
    return f"round {agent.round}: {agent.phase} {since}"


def _print_status(site: SiteFolder, agent: Status | None) -> None:
    doing = "not running" if agent is None else "idle"
    if agent is not None and agent.job:
        doing = f"in job {agent.job}, {_step(agent)}"
    console = Console()
    console.print(f"site [bold]{site.settings.label}[/]: agent {doing}")
    console.print(f"fingerprint {site.identity.public.fingerprint()}")


def _agent_status(socket: Path) -> Status | None:
    try:
        return asyncio.run(SiteLink(socket).status())
    except LinkLost:
        return None
