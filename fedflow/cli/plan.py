"""``fedflow plan``: read a plan before anybody runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedflow.learning.plan import load_plan
from fedflow.privacy.plan_cost import PlanCost, plan_cost
from fedflow.secagg.params import Thresholds
from fedflow.site.policy import check_plan, load_policy

app = typer.Typer(help="Check a plan and see what it will cost.", no_args_is_help=True)


@app.command(epilog="Example: fedflow plan check flows/plans/randhie.toml --sites 6")
def check(
    plan: Annotated[Path, typer.Argument(help="The plan (TOML).")],
    sites: Annotated[int, typer.Option(min=3, max=256, help="Sites in the roster.")] = 6,
    policy: Annotated[
        Path | None, typer.Option(help="A site's policy.toml the plan must be within.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts for machines.")] = False,
) -> None:
    """Validate a plan; show ε after every round, thresholds, and that sums cannot overflow."""
    loaded = load_plan(plan)
    thresholds = Thresholds.for_cohort(sites, loaded.cohort.colluders, loaded.cohort.minimum)
    cost = plan_cost(loaded)
    quantiser = loaded.quantiser(sites)
    if policy is not None:
        check_plan(load_policy(policy), loaded)
    if as_json:
        facts = {
            "plan": loaded.plan.name,
            "digest": loaded.digest().hex(),
            "thresholds": {
                "shares": thresholds.shares,
                "signatures": thresholds.signatures,
                "survivors": thresholds.survivors,
            },
            "rounds": [vars(row) for row in cost.rows],
            "overflow": quantiser.proof(),
        }
        typer.echo(json.dumps(facts))
        return
    console = Console()
    console.print(f"plan [bold]{loaded.plan.name}[/] is valid, digest {loaded.digest().hex()[:16]}")
    if policy is not None:
        console.print(f"it is within the policy {policy}")
    lost = sites - thresholds.survivors
    console.print(
        f"{sites} sites, {loaded.cohort.colluders} may collude with the server: a sum opens only "
        f"for {thresholds.survivors} or more, so up to {lost} may drop out"
    )
    console.print(quantiser.proof())
    console.print(_table(cost, loaded.privacy.unit))
    console.print(
        "A person is either trained on or held out, so the larger column is what they pay. "
        "Charged: what a site's budget filter takes, valid for adaptive use. Fixed plan: the "
        "tighter figure for exactly this plan, composed as privacy loss distributions.",
        style="dim",
    )


def _table(cost: PlanCost, unit: str) -> Table:
    title = f"ε per {unit} at δ = {cost.delta:g} (one {unit} replaced by nothing)"
    table = Table(title=title, title_justify="left")
    for heading in (
        "after round",
        "training: charged",
        "training: fixed plan",
        "evaluation: charged",
        "evaluation: fixed plan",
    ):
        table.add_column(heading, justify="right")
    for row in cost.rows:
        figures = (
            row.train_epsilon,
            row.train_epsilon_pld,
            row.evaluate_epsilon,
            row.evaluate_epsilon_pld,
        )
        table.add_row(str(row.round), *(f"{value:.3f}" for value in figures))
    return table
