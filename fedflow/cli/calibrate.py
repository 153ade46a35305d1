"""``fedflow plan calibrate``: the least noise that keeps a plan within a budget."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedflow.cli.toml_numbers import toml_number, write_numbers
from fedflow.errors import Refusal
from fedflow.learning.plan import Plan, load_plan
from fedflow.privacy.calibration import Calibrated, Spending
from fedflow.privacy.calibration import calibrate as least_noise
from fedflow.privacy.plan_cost import evaluation_event, evaluations, partition, training_event
from fedflow.site.policy import Dataset

Changes = dict[tuple[str, str], float]


class Accounting(StrEnum):
    """How a site charges a plan, as its policy says."""

    ADAPTIVE = "adaptive"
    FIXED_PLAN = "fixed-plan"


def calibrate(
    plan: Annotated[Path, typer.Argument(help="The plan (TOML). Its noise is ignored.")],
    epsilon: Annotated[float, typer.Option(help="What all of it may cost one unit in training.")],
    delta: Annotated[float | None, typer.Option(help="The data set's δ; default: the plan's.")] = (
        None
    ),
    trials: Annotated[
        int, typer.Option(min=1, help="Jobs like this one on the same data, such as a search.")
    ] = 1,
    evaluation_epsilon: Annotated[
        float | None, typer.Option(help="The same for held-out units; default: --epsilon.")
    ] = None,
    accounting: Annotated[
        Accounting, typer.Option(help="How the sites charge; see their policies.")
    ] = Accounting.ADAPTIVE,
    spare: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Attempts that may fail, per trial. Default: 0, or with fixed-plan a policy's.",
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Change the plan in place.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts for machines.")] = False,
) -> None:
    """Find the smallest noise multipliers that keep a whole plan within ε."""
    loaded = load_plan(plan)
    fixed = accounting is Accounting.FIXED_PLAN
    if fixed and loaded.privacy.unit == "site":
        raise Refusal("policy", 'no site charges a plan with privacy.unit "site" whole')
    if fixed and trials > 1 and delta is None:
        raise typer.BadParameter(
            "is needed: plans charged whole share the data set's δ", param_hint="--delta"
        )
    budget = loaded.privacy.delta if delta is None else delta
    if not 0.0 < budget <= 1e-3:
        raise typer.BadParameter("is not above 0 and at most 1e-3", param_hint="--delta")
    if spare is None:
        spare = Dataset.model_fields["spare_rounds"].default if fixed else 0
    rounds = loaded.plan.rounds
    train = Spending(max(loaded.trainings(rounds), 1), budget, trials, spare)
    scores = evaluations(loaded, rounds)
    scored = dataclasses.replace(train, releases=max(scores, 1))
    held_out = epsilon if evaluation_epsilon is None else evaluation_epsilon
    found: dict[str, Calibrated] = {}
    if rounds:  # a plan that only scores adds no noise to training
        found["privacy"] = least_noise(training_event(loaded), train, epsilon, accounting)
    if scores:  # and one that only describes data is not scored
        found["evaluation"] = least_noise(evaluation_event(loaded), scored, held_out, accounting)
    changes: Changes = {
        (section, "noise_multiplier"): each.noise_multiplier for section, each in found.items()
    }
    plan_delta = train.trial_delta if fixed else budget
    if plan_delta != loaded.privacy.delta:
        changes["privacy", "delta"] = plan_delta
    if write:
        write_numbers(plan, changes)
    if as_json:
        facts = {
            "plan": loaded.plan.name,
            "unit": loaded.privacy.unit,
            "adjacency": "zero-out",
            "accounting": str(accounting),
            "epsilon": epsilon,
            "evaluation_epsilon": held_out,
            "delta": budget,
            "trials": trials,
            "spare": spare,
            "training": dataclasses.asdict(found["privacy"]) if rounds else None,
            "evaluation": dataclasses.asdict(found["evaluation"]) if scores else None,
            "toml": _toml(changes),
            "written": write,
        }
        typer.echo(json.dumps(facts))
        return
    console = Console()
    console.print(_table(loaded, found, (epsilon, held_out), train, accounting))
    console.print(_remarks(loaded, train, accounting), style="dim")
    console.print(f"\nwritten to {plan}:" if write else f"\nlines for {plan}:")
    typer.echo(_toml(changes))


def _toml(changes: Changes) -> str:
    """The lines to put into the plan, by section."""
    lines: list[str] = []
    for section in dict.fromkeys(section for section, _ in changes):
        lines.append(f"[{section}]")
        lines += [f"{k} = {toml_number(v)}" for (s, k), v in changes.items() if s == section]
    return "\n".join(lines)


def _table(
    plan: Plan,
    found: dict[str, Calibrated],
    epsilons: tuple[float, float],
    spending: Spending,
    accounting: Accounting,
) -> Table:
    unit = plan.privacy.unit
    title = f"least noise for ε per {unit} at δ = {spending.delta:g}, charged as {accounting}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("")
    for heading in ("ε allowed", "noise now", "least noise", "ε adaptive", "ε fixed plan"):
        table.add_column(heading, justify="right")
    told = {
        "privacy": ("training", epsilons[0], plan.privacy.noise_multiplier),
        "evaluation": ("evaluation", epsilons[1], plan.evaluation.noise_multiplier),
    }
    for section, each in found.items():
        row, allowed, was = told[section]
        figures = (f"{each.charged:.3f}", f"{each.fixed_plan:.3f}")
        table.add_row(row, f"{allowed:g}", f"{was:g}", f"{each.noise_multiplier:g}", *figures)
    return table


def _remarks(plan: Plan, spending: Spending, accounting: Accounting) -> str:
    """What the figures count, and what they hold for."""
    unit = plan.privacy.unit
    rounds = plan.plan.rounds
    counted = f"{rounds} rounds" if rounds else "one evaluation, as nothing is trained"
    if plan.cycle > 1:
        counted += f", of which each site is asked in {spending.releases}"
    if spending.spare:
        counted += f" and {spending.spare} more attempts"
    if spending.trials > 1:
        counted += f", in each of {spending.trials} trials on the same data"
    words = [
        f"Counted: {counted}. Zero-out: one {unit} replaced by nothing.",
        "ε adaptive: what a site's filter charges if this is its whole budget, valid whatever"
        " later releases depend on. ε fixed plan: what it charges for plans fixed beforehand,"
        " composed as privacy loss distributions; several trials add up.",
    ]
    if rounds and partition(plan, "train") == partition(plan, "evaluate"):
        words.append(
            f"One account of the {unit} pays for both rows: at most the sum of both ε, so divide"
            " the budget between --epsilon and --evaluation-epsilon."
        )
    if accounting is Accounting.FIXED_PLAN and spending.trial_delta < spending.delta:
        words.append(f"Each charge takes δ = {spending.trial_delta:g} of the budget's.")
    return " ".join(words)
