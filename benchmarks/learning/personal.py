"""What a model of each site's own gains over the global one, site by site, under person-level DP.

Two kinds: the global model after the site's own private steps of the last round, at no further ε,
and a head of its own that each site keeps (FedPer). Both beside the global model that the same
method and noise make. The same without noise tells what there is to gain at all.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.data.ihdp import CENTRES, load_ihdp
from benchmarks.figures import Row, say
from benchmarks.utility.report import Amount, interval
from fedflow.crypto.csprng import Csprng
from fedflow.learning import randhie, randhie_mlp
from fedflow.learning.evaluation import exact_score
from fedflow.learning.model_file import Arrays
from fedflow.learning.plan import Plan
from fedflow.learning.randhie import LogisticRegression
from fedflow.learning.workload import PersonData, Workload, group_by_person
from fedflow.privacy.plan_cost import plan_cost
from fedflow.simulation.federation import Federation

SEEDS = 5
#: Noise that changes no figure, where a row says "without noise".
NONE = 1e-6


class LowIq:
    """Whether an infant's IQ will be under 85: a logistic regression, one row per infant."""

    name, unit_column, reference_persons, score_range = "ihdp", "id", 90, (0.0, 1.0)

    def build_model(self) -> torch.nn.Module:
        return LogisticRegression(load_ihdp().x.shape[1])

    def load(self, path: str | Path) -> PersonData:
        raise NotImplementedError

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")


@functools.cache
def visits(seed: int) -> tuple[PersonData, ...]:
    """The six sites of RAND HIE; who is held out is the package's, whatever the seed."""
    found = []
    with TemporaryDirectory() as folder:
        for name, table in randhie.partition_sites(randhie.vendored_table()).items():
            path = Path(folder) / name
            path.write_bytes(table)
            found.append(randhie.workload.load(path))
    return tuple(found)


def infants(seed: int) -> tuple[PersonData, ...]:
    """The eight centres of IHDP; each seed holds out others, as a centre has only some 25."""
    all_of = load_ihdp()
    out = []
    for centre in CENTRES:
        at = np.flatnonzero(all_of.centre == int(centre))
        ids = [all_of.ids[i] for i in at]
        dataset, where = f"ihdp {seed}", f"centre {centre}"
        x, y = all_of.x[at], all_of.y[at]
        out.append(group_by_person(x, y, ids, dataset=dataset, max_rows=1, where=where))
    return tuple(out)


@dataclass(frozen=True)
class _Task:
    name: str
    workload: Workload
    training: Mapping[str, Any]
    privacy: Mapping[str, Any]
    rounds: int

    def sites(self, seed: int) -> tuple[PersonData, ...]:
        return infants(seed) if self.name == "ihdp" else visits(0)

    def plan(self, rounds: int, noise: float | None = None, **training: Any) -> Plan:
        privacy = {"unit": "person", "delta": 1e-5, **self.privacy}
        if noise is not None:
            privacy["noise_multiplier"] = noise
        return Plan.model_validate(
            {
                "plan": {"name": "personal", "workload": self.name, "rounds": rounds},
                "cohort": {"minimum": 4, "colluders": 1},
                "strategy": {"name": "fedavg"},
                "training": {**self.training, **training},
                "privacy": privacy,
                "evaluation": {
                    "every": rounds,
                    "bins": 10,
                    "noise_multiplier": 4.5,
                    "personalised": True,
                },
                "secure_aggregation": {"bits": 32, "value_range": "auto"},
                "deadlines": {"round_seconds": 60.0, "leg_seconds": 60.0},
            }
        )


_VISITS: dict[str, Any] = {
    "training": {"local_steps": 50, "learning_rate": 1.0},
    "privacy": {"clipping_norm": 0.5, "noise_multiplier": 1.54, "sample_rate": 0.03},
    "rounds": 16,
}
RANDHIE = _Task("randhie", randhie.workload, **_VISITS)
RANDHIE_MLP = _Task("randhie-mlp", randhie_mlp.workload, **_VISITS)
IHDP = _Task(
    "ihdp",
    LowIq(),
    {"local_steps": 10, "learning_rate": 0.5},
    {"clipping_norm": 1.0, "noise_multiplier": 3.2, "sample_rate": 0.2},
    10,
)


@dataclass(frozen=True)
class _Scores:
    """AUC points by site: of the global model at the site, and of the site's personalised one."""

    shared: tuple[float, ...]
    personal: tuple[float, ...]


def trained(task: _Task, plan: Plan, seed: int) -> _Scores:
    """Train by ``plan`` and judge both models at every site on that site's held-out persons."""
    sites = task.sites(seed)
    csprng = Csprng.from_seed(seed.to_bytes(32, "big"))
    run = Federation(task.workload, sites, plan, csprng)
    for _ in range(plan.plan.rounds):
        run.round()
    scores = []
    for data, (model, own) in zip(sites, run.site_models(), strict=True):
        scores.append([_points(task, data, each, plan) for each in (model, own)])
    return _Scores(*(tuple(column) for column in zip(*scores, strict=True)))


def _points(task: _Task, data: PersonData, model: Arrays, plan: Plan) -> float:
    return 100.0 * exact_score(task.workload, data.holdout, model, plan)


def personal_rows(amount: Amount) -> Iterator[Row]:
    """Personalised against global, then heads of the sites' own against one head."""
    seeds = range(amount.seeds(SEEDS))
    for task in (RANDHIE, IHDP):
        rounds = amount.rounds(task.rounds)
        for noise in (None, NONE):
            plan = task.plan(rounds, noise)
            found = [trained(task, plan, seed) for seed in seeds]
            name = f"personalised_minus_global_{task.name}"
            yield _row(
                name if noise is None else f"{name}_without_noise",
                plan,
                [one.shared for one in found],
                [one.personal for one in found],
                amount,
            )
    rounds = amount.rounds(RANDHIE_MLP.rounds)
    for noise in (None, NONE):
        one, each = (
            RANDHIE_MLP.plan(rounds, noise, local_layers=layers) for layers in ((), ("head.*",))
        )
        name = "local_heads_minus_global_randhie"
        yield _row(
            name if noise is None else f"{name}_without_noise",
            one,
            [trained(RANDHIE_MLP, one, seed).shared for seed in seeds],
            [trained(RANDHIE_MLP, each, seed).shared for seed in seeds],
            amount,
        )


def _row(
    name: str,
    plan: Plan,
    shared: Sequence[Sequence[float]],
    own: Sequence[Sequence[float]],
    amount: Amount,
) -> Row:
    gains = np.array(own) - np.array(shared)
    means = [statistics.fmean(map(float, run)) for run in gains]
    before = float(np.mean(shared))
    by_site = ", ".join(f"{gain:+.1f}" for gain in gains.mean(axis=0))
    noised = plan.privacy.noise_multiplier > 1e-3
    price = f"ε = {plan_cost(plan).total.train_epsilon:.2f} per person" if noised else "no noise"
    say(f"{name}: {np.round(means, 2)}")
    return Row(
        name,
        "AUC points",
        tuple(means),
        size=f"{gains.shape[1]} sites, {plan.plan.rounds} rounds of {plan.local_steps} steps,"
        f" {price}",
        note=f"mean over sites, {interval(means)}; global {before:.1f}; by site {by_site}",
        judged=not amount.quick,
    )
