"""``fedflow site``: make a site, run its agent, look at it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedflow.privacy.ledger import Ledger
from fedflow.site.agent import run_agent
from fedflow.site.config import init_site, open_site
from fedflow.site.socket_protocol import LinkLost, SiteLink, Status

app = typer.Typer(
    help="Run a site: its data, policy and budget stay its own.", no_args_is_help=True
)
Folder = Annotated[Path, typer.Argument(help="The site's folder.")]


@app.command(epilog="Example: fedflow site init ./site-berlin --label berlin --exchange /mnt/fed")
def init(
    folder: Folder,
    label: Annotated[str, typer.Option(help="The site's name in rosters and in Prefect.")],
    exchange: Annotated[str, typer.Option(help="The mailbox: a folder or an fsspec URL.")],
) -> None:
    """Make a site's folder: key, settings, a policy that accepts nothing yet, an empty ledger."""
    identity = init_site(folder, label=label, exchange=exchange)
    console = Console()
    console.print(f"site [bold]{label}[/] is ready in {folder}")
    console.print(f"  public key   {identity.public.hex()}")
    console.print(f"  fingerprint  {identity.public.fingerprint()}   (compare it by phone)")
    console.print(f"next: edit {folder / 'policy.toml'}, then `fedflow site start {folder}`")


@app.command(epilog="Example: fedflow site start ./site-berlin")
def start(
    folder: Folder,
    no_prefect: Annotated[
        bool, typer.Option("--no-prefect", help="Follow signed jobs in the exchange, no worker.")
    ] = False,
) -> None:
    """Run the site's agent until Ctrl-C or SIGTERM."""
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


@app.command(epilog="Example: fedflow site status ./site-berlin")
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts for machines.")] = False,
) -> None:
    """Show what the agent does, what is left of each budget, and what the policy accepts."""
    site = open_site(folder)
    ledger = Ledger.open(site.ledger_path, site.identity.public)
    accounts = [ledger.account_status(name) for name in ledger.accounts()]
    ledger.close()
    agent = _agent_status(site.socket)
    if as_json:
        facts = {
            "label": site.settings.label,
            "agent": agent.model_dump() if agent else None,
            "accounts": [vars(account) for account in accounts],
        }
        typer.echo(json.dumps(facts))
        return
    console = Console()
    doing = "not running" if agent is None else "idle"
    if agent is not None and agent.job:
        doing = f"in job {agent.job}, round {agent.round}: {agent.phase}"
    console.print(f"site [bold]{site.settings.label}[/]: agent {doing}")
    console.print(f"fingerprint {site.identity.public.fingerprint()}")
    table = Table(title="Privacy budget per dataset", title_justify="left")
    for heading in ("account", "unit", "ε spent", "ε left", "ε budget", "δ", "releases"):
        table.add_column(heading, justify="left" if heading in ("account", "unit") else "right")
    for a in accounts:
        spent, left = f"{a.epsilon_spent:.3f}", f"{a.epsilon_left:.3f}"
        budget, delta = f"{a.epsilon_budget:g}", f"{a.delta:g}"
        table.add_row(a.account, a.unit, spent, left, budget, delta, str(a.releases))
    console.print(table if accounts else "nothing was spent: the ledger has no accounts yet")


def _agent_status(socket: Path) -> Status | None:
    try:
        return asyncio.run(SiteLink(socket).status())
    except LinkLost:
        return None
