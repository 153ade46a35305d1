"""``fedflow plan``: read a plan before anybody runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedflow.cli.calibrate import calibrate
from fedflow.cli.grouping import Grouping
from fedflow.cli.plan_tables import (
    advice,
    assumption,
    counted,
    evaluation_table,
    exposure_facts,
    remarks,
    training_table,
)
from fedflow.cli.rounding import Rounding
from fedflow.errors import Refusal
from fedflow.learning.groups import check_groups
from fedflow.learning.plan import Plan, load_plan
from fedflow.privacy.exposure import exposure
from fedflow.privacy.plan_cost import plan_cost
from fedflow.secagg.params import MAX_COHORT, Thresholds
from fedflow.site.policy import check_plan, load_policy

if TYPE_CHECKING:
    from fedflow.cli.sending import Sending
    from fedflow.cli.shares import Shares
    from fedflow.learning.workload import Workload

app = typer.Typer(help="Check a plan and see what it will cost.", no_args_is_help=True)
app.command(epilog="Example: fedflow plan calibrate plan.toml --epsilon 3 --trials 4 --write")(
    calibrate
)


@app.command(epilog="Example: fedflow plan check flows/plans/randhie.toml --sites 6")
def check(
    plan: Annotated[Path, typer.Argument(help="The plan (TOML).")],
    sites: Annotated[int, typer.Option(min=3, max=MAX_COHORT, help="Sites in the roster.")] = 6,
    policy: Annotated[
        Path | None, typer.Option(help="A site's policy.toml the plan must be within.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts for machines.")] = False,
) -> None:
    """Validate a plan; show ε of every round, thresholds, rounding, that no sum overflows."""
    loaded = load_plan(plan)
    check_groups(loaded, sites)
    thresholds = Thresholds.for_cohort(sites, loaded.cohort.colluders, loaded.cohort.minimum)
    workload = _workload(loaded)
    rounding = Rounding.of(loaded, sites, workload.reference_persons if workload else None)
    trains = loaded.plan.rounds > 0
    shares = _shares(loaded, sites, workload) if trains else None
    sending = _sending(loaded, workload) if trains else None
    grouping = Grouping.of(loaded, sites)
    survivors = grouping.survivors if grouping else thresholds.survivors
    cost, seen = plan_cost(loaded), exposure(loaded, sites)
    # The proof needs no range: both grids of a training round have the same largest number.
    proof = loaded.coding(sites, 1.0).values.proof()
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
            "graph": {
                "kind": "ring" if thresholds.window_minimum else "complete",
                "degree": thresholds.degree,
                "shares": thresholds.shares,
                "window": thresholds.half if thresholds.window_minimum else 0,
                "window_minimum": thresholds.window_minimum,
            },
            "suite": loaded.secure_aggregation.suite,
            "bits": loaded.secure_aggregation.bits,
            "weighting": loaded.strategy.weighting,
            "rounding": rounding.facts() if trains else None,
            "unit": loaded.privacy.unit,
            "delta": cost.delta,
            "assumption": assumption(loaded),
            "advice": advice(loaded, survivors),
            "shares": shares.facts() if shares else None,
            "sending": sending.facts() if sending else None,
            "groups": grouping.facts() if grouping else None,
            "rounds": [vars(row) for row in cost.rows],
            "exposure": exposure_facts(seen),
            "counted": counted(loaded, sites),
            "overflow": proof,
        }
        typer.echo(json.dumps(facts))
        return
    console = Console()
    console.print(f"plan [bold]{loaded.plan.name}[/] is valid, digest {loaded.digest().hex()[:16]}")
    if policy is not None:
        console.print(f"it is within the policy {policy}")
    console.print(
        f"{sites} sites, {loaded.cohort.colluders} may collude with the server: a sum opens only "
        f"for {thresholds.survivors} or more, so up to {thresholds.dropouts} may drop out"
        + (" at random" if thresholds.window_minimum else "")
    )
    console.print(f"{_graph(thresholds)}; suite {loaded.secure_aggregation.suite}")
    console.print(f"{loaded.secure_aggregation.bits} bits per coordinate: {proof}")
    if trains:
        console.print(rounding.sentence())
    else:
        console.print("nothing is trained: the job's first model is scored, once")
    if trains and rounding.warning:
        console.print(f"[yellow]warning:[/] {rounding.warning}")
    if shares:
        for sentence in shares.sentences(loaded):
            console.print(sentence)
    for sentence in grouping.sentences() if grouping else ():
        console.print(sentence)
    if sending:
        console.print(sending.sentence())
    if hint := advice(loaded, survivors):
        console.print(f"[yellow]hint:[/] {hint}")
    console.print(assumption(loaded))
    if trains:
        console.print(training_table(loaded, cost, seen))
    if not loaded.is_describing:
        console.print(evaluation_table(loaded, cost, seen))
    for sentence in counted(loaded, sites):
        console.print(sentence)
    console.print(remarks(loaded, sites), style="dim")


def _workload(plan: Plan) -> Workload | None:
    """The plan's workload, when it is installed here."""
    from fedflow.learning.workload import find_workload  # torch: seconds that --help need not wait

    try:
        return find_workload(plan.plan.workload)
    except Refusal:
        return None


def _shares(plan: Plan, sites: int, workload: Workload | None) -> Shares | None:
    """Facts about noise in shares; None with local noise or when the workload is unknown."""
    if plan.privacy.mechanism == "local" or workload is None:
        return None
    from fedflow.cli.shares import Shares

    return Shares.of(plan, sites, workload)


def _sending(plan: Plan, workload: Workload | None) -> Sending | None:
    """What each site sends; None when the workload is unknown."""
    if workload is None:
        return None
    from fedflow.cli.sending import Sending

    return Sending.of(plan, workload)


def _graph(thresholds: Thresholds) -> str:
    shares = f"{thresholds.shares} shares recover a secret"
    if not thresholds.window_minimum:
        return f"complete graph: every site shares with all {thresholds.degree} others, {shares}"
    return (
        f"ring: every site shares with its k = {thresholds.degree} nearest, t = {shares},"
        f" every window of {thresholds.half} in a row keeps {thresholds.window_minimum} survivors"
    )
