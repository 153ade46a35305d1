"""``fedflow demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedflow.errors import InputError
from fedflow.extras import need
from fedflow.learning.plan import load_plan

PLAN = Path(__file__).parents[2] / "flows" / "plans" / "randhie-summed.toml"


def demo(
    drop_site: Annotated[
        str, typer.Option(help="Site that loses power in one round; 'none' for no accident.")
    ] = "site-3",
    folder: Annotated[
        Path | None, typer.Option(help="Where everything is written. Default: fedflow-demo-TIME.")
    ] = None,
    plan: Annotated[Path, typer.Option(help="The plan (TOML) to run.")] = PLAN,
    epsilon: Annotated[
        float, typer.Option(min=0.1, max=100, help="Privacy budget ε that each site grants.")
    ] = 3.0,
    sites: Annotated[
        int | None,
        typer.Option(
            min=3, max=20, help="Deal the persons to so many sites. Default: the experiment's six."
        ),
    ] = None,
    keep_server: Annotated[
        bool, typer.Option("--keep-server", help="Leave the Prefect UI open at the end.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Train one model over six sites on this machine: real processes, real protocol, real data."""
    labels = [f"site-{number}" for number in range(1, (sites or 6) + 1)]
    if drop_site not in [*labels, "none"]:
        raise InputError(
            f"{drop_site!r} is not a site",
            field="--drop-site",
            allowed=", ".join([*labels, "none"]),
        )
    loaded = load_plan(plan)
    need("coordinator")
    from fedflow.demo.run import Demo, Options  # heavy: torch and Prefect

    options = Options(
        plan=loaded,
        folder=folder or Path(f"fedflow-demo-{time.strftime('%Y%m%d-%H%M%S')}"),
        epsilon=epsilon,
        drop_site=None if drop_site == "none" else drop_site,
        keep_server=keep_server,
        as_json=as_json,
        sites=sites,
    )
    facts = Demo(options, Console(stderr=as_json)).run()
    if not facts["audit_ok"] or facts["stopped_early"]:
        raise typer.Exit(1)
