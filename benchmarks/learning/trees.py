"""Private, federated trees against scikit-learn's, which see all the data and protect nobody.

The six sites of the RAND Health Insurance Experiment, a person is a unit, noise in shares; the
example plans ``flows/plans/gbdt.toml`` and ``forest.toml`` as they are. Their settings were chosen
by five folds of training persons, at the same epsilon; that search is not in epsilon. Everything is
scored on the same held-out persons, a person's years sharing a weight of 1. scikit-learn's models
have their default settings; a forest with ten rows or more in a leaf is shown beside, as it is
better.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Row, WrongResult, say
from benchmarks.utility.report import Amount, interval
from fedflow.crypto.csprng import Csprng
from fedflow.learning import randhie
from fedflow.learning.auc import exact_auc
from fedflow.learning.baselines import pooled_holdout
from fedflow.learning.evaluation import exact_score
from fedflow.learning.model_file import unflatten
from fedflow.learning.plan import Plan, load_plan
from fedflow.learning.workload import PersonData, Persons
from fedflow.privacy.plan_cost import plan_cost
from fedflow.simulation.federation import Federation

PLANS = Path(__file__).parents[2] / "flows" / "plans"
SEEDS, QUICK_ROUNDS = 5, 2
LEAF = 10  #: rows in a leaf of the better forest, at least
Sites = Mapping[str, PersonData]


@functools.cache
def sites(count: int | None = None) -> Sites:
    """The data of each site: of the experiment's six, or of so many among whom it is dealt."""
    found, table = {}, randhie.vendored_table()
    parts = randhie.partition_sites(table) if count is None else randhie.deal_persons(table, count)
    with tempfile.TemporaryDirectory() as folder:
        for label, rows in parts.items():
            path = Path(folder) / f"{label}.csv"
            path.write_bytes(rows)
            found[label] = randhie.workload.load(path)
    return found


def plan_of(name: str, seed: int, rounds: int | None = None) -> Plan:
    """The example plan, by its name that of one seed: each has other trees.

    With ``rounds`` the same number of trees a round, and so the same norm.
    """
    raw = load_plan(PLANS / f"{name}.toml").model_dump()
    raw["plan"]["name"] = f"{name}-{seed}"
    if rounds is not None:
        raw["method"]["trees"] = raw["method"]["trees"] // raw["plan"]["rounds"] * rounds
        raw["plan"]["rounds"] = rounds
    return Plan.model_validate(raw)


def private_auc(plan: Plan, data: Sites, seed: int, *, secure: bool = False) -> float:
    """In points, after all rounds, by the sites' own code; ``secure``: through masks."""
    csprng = Csprng.from_seed((seed + 1_000).to_bytes(32, "big"))
    parts = [data[label] for label in sorted(data)]
    made = Federation(randhie.workload, parts, plan, csprng, secure=secure)
    for _ in range(plan.plan.rounds):
        made.round()
    state = unflatten(made.state, made.spec)
    return 100 * exact_score(randhie.workload, pooled_holdout(data), state, plan)


def central_auc(model: Any, data: Sites) -> float:
    """In points, of a scikit-learn classifier fitted to everybody's training rows."""
    train = Persons.join([data[label].train for label in sorted(data)])
    test = pooled_holdout(data)
    model.fit(train.x[train.mask], train.y[train.mask])
    said = model.predict_proba(test.x[test.mask])[:, 1]
    weights = (test.mask / test.mask.sum(axis=1, keepdims=True))[test.mask]
    return 100 * exact_auc(said, test.y[test.mask].astype(np.float64), weights)


def central_models() -> dict[str, Callable[[int], Any]]:
    """scikit-learn's classifiers by name, each from a seed."""
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    return {
        "boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
        "forest": lambda seed: RandomForestClassifier(random_state=seed),
        "leaves": lambda seed: RandomForestClassifier(min_samples_leaf=LEAF, random_state=seed),
    }


def tree_rows(amount: Amount) -> Iterator[Row]:
    """Points of AUC that privacy and the federation cost, for boosted trees and for a forest."""
    data, seeds = sites(), range(amount.seeds(SEEDS))
    central = {}
    for name, model in central_models().items():
        central[name] = [central_auc(model(seed), data) for seed in seeds]
        say(f"central {name}: {interval(central[name])}")
    for name, beside in (("gbdt", "boosting"), ("forest", "forest")):
        plans = [plan_of(name, seed, QUICK_ROUNDS if amount.quick else None) for seed in seeds]
        cost = plan_cost(plans[0]).total
        found = [private_auc(plan, data, seed) for seed, plan in enumerate(plans)]
        if private_auc(plans[0], data, 0, secure=True) != found[0]:
            raise WrongResult(f"{name}: masks changed the result")
        privacy = f"epsilon {cost.train_epsilon:.2f}, delta {plans[0].privacy.delta:g}"
        size = f"RAND HIE, 6 sites, unit a person, {privacy}, noise for 4 sites of which 1 colludes"
        yield _difference(f"{name}_minus_central", found, central[beside], size, amount)
        if name == "forest":
            for other in ("boosting", "leaves"):
                shown = f"forest_minus_central_{other}"
                yield _difference(shown, found, central[other], size, amount, bar=None)


def _difference(
    name: str,
    found: list[float],
    central: list[float],
    size: str,
    amount: Amount,
    bar: str | None = ">= -2",
) -> Row:
    runs = tuple(ours - theirs for ours, theirs in zip(found, central, strict=True))
    note = f"AUC {interval(found)}, central {interval(central)}"
    return Row(name, "points", runs, bar=bar, size=size, note=note, judged=not amount.quick)
