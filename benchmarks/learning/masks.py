"""What masks do to the score: every example plan on RAND HIE, with secure aggregation and without.

With it, words go through the whole protocol; without, they are added. Sites code, clip and noise as
ever in both, from the same draws but for the rounding of float updates, whose draws come from the
operating system. What coding and discrete noise do beside a sum of floats is another figure:
``secagg_effect`` of :mod:`benchmarks.utility`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Row, say
from benchmarks.learning.trees import Sites, sites
from benchmarks.utility.report import Amount
from fedflow.crypto.csprng import Csprng
from fedflow.learning import randhie, randhie_mlp
from fedflow.learning.evaluation import exact_score_of_sites
from fedflow.learning.plan import Plan, load_plan
from fedflow.learning.workload import Workload
from fedflow.simulation.federation import Federation

PLANS = Path(__file__).parents[2] / "flows" / "plans"
WORKLOADS: dict[str, Workload] = {w.name: w for w in (randhie.workload, randhie_mlp.workload)}
QUICK_ROUNDS = 2


def mask_rows(amount: Amount) -> Iterator[Row]:
    """The largest difference there was, then that of each plan."""
    rows = []
    for plan in example_plans():
        data, rounds = sites_for(plan), QUICK_ROUNDS if amount.quick else plan.plan.rounds
        masked, plain = (score(plan, data, rounds, secure=secure) for secure in (True, False))
        name = f"secagg_effect_plan_{plan.plan.name.replace('-', '_')}"
        unit = "mean squared error x 100" if plan.evaluation.metric == "mse" else "points"
        size = f"{rounds} rounds of {plan.strategy.name}"
        rows.append(Row(name, unit, (masked - plain,), None, size, f"with masks {masked:.3f}"))
        say(f"{name}: {masked - plain:+.5f}")
    worst = max((row.value for row in rows), key=abs)
    note = f"size of the worst of {len(rows)} differences ({worst:+.5f}); the bar is either way"
    size = "RAND HIE, 6 sites, 9 where a plan has groups of them; one seed"
    yield Row("secagg_effect_plans", "points", (abs(worst),), "<= 0.1", size, note)
    yield from rows


def example_plans() -> list[Plan]:
    """Those that are scored and train one of :data:`WORKLOADS`, by name."""
    plans = [load_plan(path) for path in sorted(PLANS.glob("*.toml"))]
    return [p for p in plans if p.plan.workload in WORKLOADS and not p.is_describing]


def sites_for(plan: Plan) -> Sites:
    """The experiment's sites, or enough of them for the plan's groups."""
    groups = plan.participation.groups
    return sites(None if groups is None else groups * plan.cohort.minimum)


def score(plan: Plan, data: Sites, rounds: int, *, secure: bool) -> float:
    """In points, over everybody held out, after so many rounds."""
    workload, parts = WORKLOADS[plan.plan.workload], [data[label] for label in sorted(data)]
    made = Federation(workload, parts, plan, Csprng.from_seed(bytes(32)), secure=secure)
    for _ in range(rounds):
        made.round()
    models = [model for model, _ in made.site_models()]
    judged = [(site.holdout, model) for site, model in zip(parts, models, strict=True)]
    return 100.0 * exact_score_of_sites(workload, judged, plan)
