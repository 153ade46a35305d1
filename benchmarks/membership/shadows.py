"""Shadow models: federations that each train on a random half of everybody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.membership.lira import confidence
from fedflow.audit.empirical.black_box import losses_of
from fedflow.audit.empirical.canaries import coins
from fedflow.crypto.csprng import Csprng
from fedflow.learning.dpsgd import train_plain
from fedflow.learning.model_file import Arrays, ModelSpec, flatten, unflatten
from fedflow.learning.plan import Plan
from fedflow.learning.workload import PersonData, Persons, Workload, initial_model
from fedflow.simulation import Federation

Train = Callable[[Workload, Sequence[PersonData], Plan, Csprng], Arrays]


@dataclass(frozen=True)
class Population:
    """Everybody whose membership is asked for: ``sites[i]`` lives at site i, none is held out."""

    workload: Workload
    sites: tuple[Persons, ...]

    @property
    def everybody(self) -> Persons:
        """All of them, site after site."""
        return Persons.join(self.sites)

    @classmethod
    def of(cls, workload: Workload, data: Sequence[PersonData], most: int | None) -> Population:
        """All persons in ``data``, or the first ``most`` of each site."""
        whole = (Persons.join([site.train, site.holdout]) for site in data)
        return cls(workload, tuple(p.take(np.arange(len(p)) < (most or len(p))) for p in whole))


def private(workload: Workload, sites: Sequence[PersonData], plan: Plan, csprng: Csprng) -> Arrays:
    """The model of a federation that follows ``plan``, through the code that sites run."""
    run = Federation(workload, sites, plan, csprng)
    for _ in range(plan.plan.rounds):
        run.round()
    return run.model()


def plain(workload: Workload, sites: Sequence[PersonData], plan: Plan, csprng: Csprng) -> Arrays:
    """Federated averaging with the plan's steps and rounds, without clipping and noise."""
    first = initial_model(workload)
    spec, vector = ModelSpec.of(first), flatten(first)
    for _ in range(plan.plan.rounds):
        total = np.zeros(spec.dimension)
        for site in sites:
            total += train_plain(workload, site, unflatten(vector, spec), plan, csprng)
        step = plan.strategy.server_learning_rate / len(sites) * total
        vector = (vector + step).astype(np.float32)
    return unflatten(vector, spec)


def shadow_models(
    population: Population,
    plan: Plan,
    train: Train,
    models: int,
    csprng: Csprng,
    told: Callable[[int], None],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidences float64[models, N] and members bool[models, N], each person in by a fair coin."""
    everybody = population.everybody
    nobody = everybody.take(np.zeros(len(everybody), np.bool_))
    ends = np.cumsum([len(site) for site in population.sites])[:-1]
    found, members = [], []
    for number in range(models):
        inside = coins(len(everybody), csprng)
        parts = np.split(inside, ends)
        sites = [
            PersonData(site.take(keep), nobody)
            for site, keep in zip(population.sites, parts, strict=True)
        ]
        model = train(population.workload, sites, plan, csprng.child("model"))
        found.append(confidence(losses_of(population.workload, model, everybody)))
        members.append(inside)
        told(number + 1)
    return np.stack(found), np.stack(members)
