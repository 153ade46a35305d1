"""What a plan costs by who looks at it and by what counts as a neighbouring data set.

A ledger charges one figure: zero-out, at the fewest sites a sum opens for, with every colluder's
noise taken away. This module says what the same releases cost under other assumptions. All figures
compose the plan as fixed in advance, by privacy loss distributions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedflow.errors import Misuse
from fedflow.privacy.accounting import RELATIONS, epsilon_pld
from fedflow.privacy.events import NOISE_RANGE, ReleaseEvent
from fedflow.privacy.plan_cost import evaluation_event, evaluations, shown_rounds, training_event

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan

COLLUDING = "server and colluders"
EVERYONE = "everyone"
TRUSTS = (COLLUDING, EVERYONE)
ADJACENCIES = tuple(RELATIONS)


@dataclass(frozen=True)
class ExposureRow:
    """Epsilon per account ("train", "evaluate") after ``round`` rounds (1 is the first).

    Keys of the inner mappings are (trust, adjacency), from :data:`TRUSTS` and :data:`ADJACENCIES`.
    """

    round: int
    train: Mapping[tuple[str, str], float]
    evaluate: Mapping[tuple[str, str], float]


def seen_by_everyone(event: ReleaseEvent, sites: int) -> ReleaseEvent:
    """``event`` for somebody who sees sums over ``sites`` sites and added no noise to them.

    All shares count, those of sites that others fear as colluders too: a summed kind's multiplier
    grows by ``sqrt(sites / (minimum - colluders))``. Noise that is a site's own stays as it is:
    other sites' updates hide it further, but clamped and weighted as they are nothing is claimed
    for that. Misuse when so few sites open no sum.
    """
    if not event.summed:
        return event
    if sites < event.minimum:
        raise Misuse(f"a sum over {sites} sites never opens, the least is {event.minimum}")
    gain = math.sqrt(sites / (event.minimum - event.colluders))
    noise = min(event.noise_multiplier * gain, NOISE_RANGE[1])
    return dataclasses.replace(event, noise_multiplier=noise)


def exposure(plan: Plan, sites: int, delta: float | None = None) -> tuple[ExposureRow, ...]:
    """The figures of ``plan`` with ``sites`` sites that all survive, for the rounds shown."""
    delta = plan.privacy.delta if delta is None else delta
    train = _by_trust(training_event(plan), plan.smallest_sum(sites))
    evaluate = _by_trust(evaluation_event(plan), sites)
    return tuple(
        ExposureRow(
            number,
            _figures(train, plan.trainings(number), delta),
            _figures(evaluate, evaluations(plan, number), delta),
        )
        for number in shown_rounds(plan.plan.rounds)
    )


def _by_trust(event: ReleaseEvent, sites: int) -> dict[str, ReleaseEvent]:
    return {COLLUDING: event, EVERYONE: seen_by_everyone(event, sites)}


def _figures(
    events: Mapping[str, ReleaseEvent], times: int, delta: float
) -> dict[tuple[str, str], float]:
    return {
        (trust, adjacency): epsilon_pld([event.repeated(times)] if times else [], delta, adjacency)
        for trust, event in events.items()
        for adjacency in ADJACENCIES
    }
