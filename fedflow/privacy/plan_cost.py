"""What a plan costs in privacy, before anyone has agreed to it.

Two accounts per data set pay: "train" holds the training persons and "evaluate" the held-out ones.
No person is in both, so a person is charged by one account only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedflow.privacy.accounting import (
    FixedOrderFilter,
    best_order,
    choose_order,
    conversion,
    epsilon_pld,
    rdp_at,
)
from fedflow.privacy.events import ReleaseEvent

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan

MAX_ROWS = 50


@dataclass(frozen=True)
class CostRow:
    """Epsilon per account after ``round`` rounds (1 is the first).

    ``*_epsilon`` is what a site's filter charges, ``*_epsilon_pld`` what the same releases cost
    when the plan is fixed in advance and composed with privacy loss distributions.
    """

    round: int
    train_epsilon: float
    train_epsilon_pld: float
    evaluate_epsilon: float
    evaluate_epsilon_pld: float


@dataclass(frozen=True)
class PlanCost:
    """The whole table, with the delta and Renyi orders it was computed at."""

    delta: float
    train_order: float
    evaluate_order: float
    rows: tuple[CostRow, ...]

    @property
    def total(self) -> CostRow:
        """The row after the last round."""
        return self.rows[-1]


def training_event(plan: Plan) -> ReleaseEvent:
    """What one training round releases at a site.

    "local": ``local_steps`` sampled Gaussian steps; the noise is the site's own, so the price holds
    whatever other sites do. "summed": one sampled step, "site": one update; both with the noise of
    the fewest honest sites that a sum opens for.
    """
    privacy, cohort = plan.privacy, plan.cohort
    noise, rate = float(privacy.noise_multiplier), float(privacy.sample_rate)
    if privacy.mechanism == "local":
        return ReleaseEvent("poisson-gaussian", rate, noise, plan.local_steps, privacy.unit)
    kind, rate = (
        ("poisson-summed-gaussian", rate)
        if privacy.mechanism == "summed"
        else ("summed-gaussian", 1.0)
    )
    return ReleaseEvent(
        kind,
        rate,
        noise,
        1,
        privacy.unit,
        minimum=cohort.minimum,
        colluders=cohort.colluders,
    )


def evaluation_event(plan: Plan) -> ReleaseEvent:
    """What one evaluation releases: one histogram, with the noise of the fewest honest sites.

    Each site adds its share such that ``minimum - colluders`` shares reach the plan's noise; a sum
    over more sites is noisier, so this is the worst case.
    """
    return ReleaseEvent(
        "summed-gaussian",
        1.0,
        float(plan.evaluation.noise_multiplier),
        1,
        plan.privacy.unit,
        minimum=plan.cohort.minimum,
        colluders=plan.cohort.colluders,
    )


def partition(plan: Plan, purpose: str) -> str:
    """The part of a data set that a round for ``purpose`` ("train", "evaluate") reads.

    Training reads only persons of the train partition and evaluation only held-out persons, so an
    account of each bounds the loss of its own persons (parallel composition, McSherry 2009). Where
    the whole site is protected both read the same unit, and one account, "all", pays for both.
    """
    return "all" if plan.privacy.unit == "site" else purpose


def evaluations(plan: Plan, rounds: int) -> int:
    """How many evaluations the first ``rounds`` rounds contain; one where nothing is trained.

    Zero where data are only described.
    """
    if plan.is_describing:
        return 0
    if plan.plan.rounds == 0:
        return 1
    last = rounds == plan.plan.rounds and rounds % plan.evaluation.every != 0
    return rounds // plan.evaluation.every + last


def shown_rounds(rounds: int) -> list[int]:
    """At most 50 of the numbers 1 to ``rounds``, evenly spread, the last always among them.

    Of no rounds it is 0 alone: what a plan without training costs.
    """
    if rounds == 0:
        return [0]
    count = min(rounds, MAX_ROWS)
    return sorted({round((i + 1) * rounds / count) for i in range(count)})


def plan_cost(plan: Plan, epsilon: float | None = None, delta: float | None = None) -> PlanCost:
    """Cumulative epsilon of ``plan`` by round, at most 50 rows, the last round always among them.

    With a site's budget ``epsilon`` the filter's order is the one that site commits to (Refusal
    ``bad-budget`` when the budget pays for nothing); without, the one best for the whole plan.
    ``delta`` is the plan's unless given.
    """
    delta = plan.privacy.delta if delta is None else delta
    rounds = plan.plan.rounds
    train, evaluate = training_event(plan), evaluation_event(plan)
    if epsilon is None:
        train_order = best_order(train.repeated(max(plan.trainings(rounds), 1)), delta)
        evaluate_order = best_order(evaluate.repeated(max(evaluations(plan, rounds), 1)), delta)
    else:
        train_order = choose_order(train, epsilon, delta)
        evaluate_order = choose_order(evaluate, epsilon, delta)
    rows = []
    for number in shown_rounds(rounds):
        scored, trained = evaluations(plan, number), plan.trainings(number)
        rows.append(
            CostRow(
                number,
                _filter_epsilon(train, trained, train_order, delta),
                epsilon_pld([train.repeated(trained)] if trained else [], delta),
                _filter_epsilon(evaluate, scored, evaluate_order, delta),
                epsilon_pld([evaluate.repeated(scored)] if scored else [], delta),
            )
        )
    return PlanCost(delta, train_order, evaluate_order, tuple(rows))


def rounds_within(event: ReleaseEvent, epsilon: float, delta: float) -> int:
    """How many releases of ``event`` a fresh account with this budget pays for."""
    order = choose_order(event, epsilon, delta)
    bound = FixedOrderFilter(epsilon, delta, order)
    return int(bound.capacity / rdp_at(event, order))


def _filter_epsilon(event: ReleaseEvent, times: int, order: float, delta: float) -> float:
    if times == 0:
        return 0.0
    return max(0.0, rdp_at(event, order) * times + conversion(order, delta))
