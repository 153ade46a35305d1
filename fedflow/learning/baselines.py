"""What the federated private model is compared with, by one party that holds all the data.

None of this is private and none of it runs in a federation. All use the plan's model, optimiser,
learning rate, sampling and number of steps, and all are judged by the exact score on the held-out
persons of all sites together. Every baseline is given its best round, chosen on those same persons:
that flatters the baselines, never the model they are compared with. No layer stays at a site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse
from fedflow.learning.dpsgd import train_plain
from fedflow.learning.evaluation import exact_score
from fedflow.learning.first_model import plan_model
from fedflow.learning.methods import method_of
from fedflow.learning.metrics import METRICS
from fedflow.learning.model_file import Arrays, ModelSpec, flatten, unflatten
from fedflow.learning.plan import Plan
from fedflow.learning.preprocessing import prepared_data
from fedflow.learning.server_state import initial_state, parameters, state_spec
from fedflow.learning.strategy import step_along
from fedflow.learning.workload import PersonData, Persons, Workload, units_of


@dataclass(frozen=True)
class Baselines:
    """Exact scores on the pooled holdout, without privacy."""

    alone: dict[str, float]
    pooled: float
    federated: float

    @property
    def alone_mean(self) -> float:
        """Mean over sites of each site training alone."""
        return sum(self.alone.values()) / len(self.alone)


def pooled_holdout(sites: Mapping[str, PersonData]) -> Persons:
    """The held-out persons of all sites."""
    return Persons.join([sites[label].holdout for label in sorted(sites)])


def compute(
    workload: Workload, sites: Mapping[str, PersonData], plan: Plan, csprng: Csprng
) -> Baselines:
    """All baselines. ``sites``: label -> data."""
    test = pooled_holdout(sites)
    return Baselines(
        alone={label: alone(workload, sites[label], test, plan, csprng) for label in sorted(sites)},
        pooled=pooled(workload, sites, plan, csprng),
        federated=federated(workload, sites, plan, csprng),
    )


def alone(workload: Workload, data: PersonData, test: Persons, plan: Plan, csprng: Csprng) -> float:
    """Best score on ``test`` of a model trained on one site's persons only."""
    return _best(workload, [data], test, plan, csprng)


def pooled(
    workload: Workload, sites: Mapping[str, PersonData], plan: Plan, csprng: Csprng
) -> float:
    """Best score of a model trained on everybody's training persons in one place."""
    test = pooled_holdout(sites)
    train = Persons.join([sites[label].train for label in sorted(sites)])
    return _best(workload, [PersonData(train, test)], test, plan, csprng)


def federated(
    workload: Workload, sites: Mapping[str, PersonData], plan: Plan, csprng: Csprng
) -> float:
    """Best score of federated averaging as planned, without clipping and noise."""
    parts = [sites[label] for label in sorted(sites)]
    return _best(workload, parts, pooled_holdout(sites), plan, csprng)


def _best(
    workload: Workload, parts: Sequence[PersonData], test: Persons, plan: Plan, csprng: Csprng
) -> float:
    plan = plan.model_copy(
        update={"training": plan.training.model_copy(update={"local_layers": ()})}
    )
    initial = plan_model(workload, plan)
    parts = [prepared_data(part, plan, workload) for part in parts]
    spec = state_spec(ModelSpec.of(initial), plan)
    vector, best = flatten(initial_state(initial, plan)), None
    metric = METRICS[plan.evaluation.metric]
    for _ in range(plan.plan.rounds):
        state = unflatten(vector, spec)
        vector = step_along(vector, _mean(workload, parts, state, plan, csprng), plan)
        score = exact_score(workload, test, unflatten(vector, spec), plan)
        best = score if best is None or metric.better(score, best) else best
    if best is None:
        raise Misuse("a baseline of no rounds")
    return best


def _mean(
    workload: Workload, parts: Sequence[PersonData], state: Arrays, plan: Plan, csprng: Csprng
) -> NDArray[np.float64]:
    """What a sum over all ``parts`` would say without clipping and noise, float64[d]."""
    method = method_of(plan)
    if method is not None:
        units = [units_of(part.train, plan.privacy.unit) for part in parts]
        values = [method.unit_values(workload, each, state, plan).sum(axis=0) for each in units]
        return np.asarray(np.sum(values, axis=0), np.float64)
    model = parameters(state)
    changes = [train_plain(workload, part, model, plan, csprng) for part in parts]
    return np.asarray(np.mean(changes, axis=0), np.float64)
