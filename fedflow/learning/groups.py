"""Several sums instead of one, and the median of their means: a wrong site spoils its group only.

Masks hide single updates from whoever would look for odd ones, so robustness has to come from sums.
``participation.groups = G`` divides the sites into G groups; each makes a whole secure sum of its
own, in G rounds of one cycle, all from the same model, and the model then steps along the
coordinate-wise median of the groups' means (Yin et al., "Byzantine-robust distributed learning",
ICML 2018, on means of groups: the median of means). As long as most groups have no wrong site, each
coordinate of the median lies within what groups of honest sites said.

Who is in which group is a public function of the manifest and the cycle: nobody chooses it, and
every site checks it before it takes part, so a server cannot put a site among its accomplices. In
each cycle a site is asked once. No guarantee of privacy counts on the choice: every group is at
least ``cohort.minimum`` sites.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse, Refusal, Violation
from fedflow.learning.plan import Plan
from fedflow.secagg.params import Thresholds
from fedflow.wire.messages import Kind, Order, labelled_hash


def deal(
    groups: int, roster: Collection[int], manifest: bytes, cycle: int
) -> tuple[tuple[int, ...], ...]:
    """The groups of a cycle (0 is the first): ascending indices of ``roster``, each in one group.

    Sizes differ by one at most. Every way to deal is as likely as any other, to whoever did not
    choose the ``manifest``, 32 bytes.
    """
    seed = labelled_hash("groups", manifest + cycle.to_bytes(4, "big"))
    known = np.sort(np.fromiter(roster, np.int64, len(roster)))
    shuffled = known[np.argsort(Csprng.from_seed(seed).uint64(len(known)), kind="stable")]
    return tuple(tuple(sorted(shuffled[k::groups].tolist())) for k in range(groups))


def group_of_round(
    plan: Plan, manifest: bytes, roster: Collection[int], number: int
) -> tuple[int, ...]:
    """Whom training round ``number`` (1 is the first) asks, ascending. Misuse without groups."""
    if plan.participation.groups is None:
        raise Misuse("the plan has no groups")
    cycle, turn = divmod(number - 1, plan.cycle)
    return deal(plan.cycle, roster, manifest, cycle)[turn]


def check_asked(plan: Plan, order: Order, roster: Collection[int]) -> None:
    """Violation ``wrong-group`` when ``order`` asks others than the group whose turn it is."""
    if plan.participation.groups is None or Kind(order.kind) is not Kind.TRAIN:
        return
    group = group_of_round(plan, order.manifest, roster, order.round)
    if order.invited != group:
        raise Violation(
            "wrong-group",
            f"the order does not ask the group whose turn round {order.round} is, which follows"
            " from the manifest and is nobody's to choose",
        )


def check_groups(plan: Plan, sites: int) -> None:
    """Refusal ``too-few-sites`` when the smallest group of so many sites could open no sum.

    A plan that only scores asks no group: everybody is asked.
    """
    if plan.participation.groups is None or not plan.plan.rounds:
        return
    smallest, minimum = plan.smallest_sum(sites), plan.cohort.minimum
    if smallest < minimum:
        raise Refusal(
            "too-few-sites",
            f"{sites} sites in {plan.cycle} groups are {smallest} in the smallest, and a sum opens"
            f" for {minimum}; take fewer participation.groups or a smaller cohort.minimum",
        )
    Thresholds.for_cohort(smallest, plan.cohort.colluders, minimum)


def median(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """The coordinate-wise median float64[n] of ``means`` float64[G, n]; of an even G, the middle.

    Comparisons, one sum and one quotient, so the same bits everywhere: zeros have no sign here.
    """
    ranked = np.sort(means + 0.0, axis=0)
    count = len(ranked)
    low, high = ranked[(count - 1) // 2], ranked[count // 2]
    return np.asarray(low if count % 2 else (low + high) / 2.0)
