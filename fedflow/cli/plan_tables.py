"""The tables of ``fedflow plan check``: ε by round, by who looks, by what a neighbour is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich import box
from rich.table import Table

from fedflow.learning.plan import Plan
from fedflow.learning.scoring import (
    fairness_between,
    fairness_noise,
    sensitivity,
    unit_weight,
)
from fedflow.privacy.exposure import ADJACENCIES, COLLUDING, EVERYONE, TRUSTS, ExposureRow
from fedflow.privacy.plan_cost import PlanCost

_SHORT = {"zero-out": "zero-out", "add-remove": "add/rem.", "replace-one": "replace"}


def training_table(plan: Plan, cost: PlanCost, rows: Sequence[ExposureRow]) -> Table:
    """ε of training. With local noise there is one column group: who looks makes no difference."""
    trusts = (COLLUDING,) if plan.privacy.mechanism == "local" else TRUSTS
    charged = [row.train_epsilon for row in cost.rows]
    return _table("training", plan, cost, trusts, charged, [row.train for row in rows])


def evaluation_table(plan: Plan, cost: PlanCost, rows: Sequence[ExposureRow]) -> Table:
    """ε of evaluation, after the rounds that are followed by one."""
    paid = [0.0, *(row.evaluate_epsilon for row in cost.rows)]
    scored = [at for at in range(len(rows)) if paid[at + 1] != paid[at]]
    only = replace(cost, rows=tuple(cost.rows[at] for at in scored))
    charged = [row.evaluate_epsilon for row in only.rows]
    figures = [rows[at].evaluate for at in scored]
    return _table("evaluation", plan, only, TRUSTS, charged, figures)


def exposure_facts(rows: Sequence[ExposureRow]) -> list[dict[str, Any]]:
    """The same for machines: by round, account, trust and adjacency."""

    def nested(figures: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
        return {trust: {a: figures[trust, a] for a in ADJACENCIES} for trust in TRUSTS}

    return [
        {"round": row.round, "train": nested(row.train), "evaluate": nested(row.evaluate)}
        for row in rows
    ]


def assumption(plan: Plan) -> str:
    """What must be true of the data for ε to mean what it says."""
    return {
        "person": "assumed: all rows of one person are at one site only",
        "record": "assumed: a record is at one site only",
        "site": "assumed: a site is in the roster once",
    }[plan.privacy.unit]


def advice(plan: Plan, survivors: int) -> str:
    """What to change when sums open for more sites than the noise is sized for; or nothing."""
    minimum, colluders = plan.cohort.minimum, plan.cohort.colluders
    if survivors <= minimum:
        return ""
    factor = ((minimum - colluders) / (survivors - colluders)) ** 0.5
    return (
        f"with so many sites a sum opens only for {survivors} or more, but noise in shares is sized"
        f" for {minimum}: with cohort.minimum = {survivors} the same ε takes {factor:.2f} of it"
    )


def counted(plan: Plan, sites: int) -> list[str]:
    """What an evaluation counts beside the global model's score, and what that does to it."""
    said, scored = [], plan.evaluation
    if scored.personalised:
        said.append(
            "evaluations count held-out units by each site's own model too, at no further ε"
        )
    if bins := scored.fairness_bins:
        (low, high), error = fairness_between(plan), fairness_noise(plan, sites)
        said.append(
            f"evaluations count sites by their own score, in {bins} bins from {low:g} to {high:g}:"
            f" a bin holds {sites / bins:.1f} of {sites} sites on average, and noise of"
            f" ± {error:.1f} sites"
            + (
                "; that tells nothing: it takes more sites and a larger cohort.minimum"
                if error * bins > sites
                else ""
            )
        )
    if said:
        factor = sensitivity(plan) / unit_weight(plan)
        said.append(f"for this all counts have {factor:.2f} times the noise, at the same ε")
    return said


def remarks(plan: Plan, sites: int) -> str:
    """How to read the tables."""
    unit, cohort = plan.privacy.unit, plan.cohort
    words = [
        f"Every ε is per {unit}.",
        f"A {unit} is either trained on or held out, so the larger table is what it pays."
        if unit != "site"
        else "A site trains and evaluates: one account pays both tables, at most their sum.",
        "Charged: what a site's budget filter takes, valid for adaptive use. The other columns are"
        " for exactly this plan, fixed beforehand, composed as privacy loss distributions.",
        f"Zero-out: one {unit} replaced by nothing. Add/remove: the same figure, as sampling rate"
        f" and divisor are public. Replace: one {unit} exchanged for another, as dp-accounting"
        " composes it for opposite contributions, which is the worst case (docs/privacy.md); no"
        " worse for a histogram.",
        f"Server + {cohort.colluders}: sees all that is sent and knows its colluders' noise, in a"
        f" sum of only {cohort.minimum} sites. Everyone: sees models and sums of all {sites}"
        " sites and added no noise itself; a site that did knows one share of them.",
    ]
    if plan.cycle > 1:
        words.append("A site trains once in a cycle of groups, and pays for that only.")
    if plan.privacy.mechanism == "local":
        words.append(
            "Training noise is each site's own, so it is the same against everyone; what other"
            " sites' noise adds is not counted."
        )
    return " ".join(words)


def _table(
    what: str,
    plan: Plan,
    cost: PlanCost,
    trusts: Sequence[str],
    charged: Sequence[float],
    figures: Sequence[Mapping[tuple[str, str], float]],
) -> Table:
    title = f"{what}: ε per {plan.privacy.unit} at δ = {cost.delta:g}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 0, 0, 1))
    names = {COLLUDING: f"server + {plan.cohort.colluders}", EVERYONE: "everyone"}
    if len(trusts) == 1:
        names = {COLLUDING: "anyone"}
    table.add_column("after\nround", justify="right")
    table.add_column("\ncharged", justify="right")
    for trust in trusts:
        for at, adjacency in enumerate(ADJACENCIES):
            above = names[trust] if at == 0 else ""
            table.add_column(f"{above}\n{_SHORT[adjacency]}", justify="right")
    for row, paid, seen in zip(cost.rows, charged, figures, strict=True):
        shown = (seen[trust, adjacency] for trust in trusts for adjacency in ADJACENCIES)
        table.add_row(str(row.round), f"{paid:.3f}", *(f"{value:.3f}" for value in shown))
    return table
