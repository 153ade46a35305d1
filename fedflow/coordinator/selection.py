"""Which of the sites that are there are asked to take part in a round.

Nothing here protects anybody: sites decide for themselves what they answer, and no privacy
guarantee counts on who was chosen. It decides what is learned from whom, and what it costs them.
Only what the coordinator knows anyway goes in: who is there, and who was in which sum.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fedflow.crypto.csprng import Csprng
from fedflow.learning.plan import Plan


@dataclass(frozen=True)
class SiteHistory:
    """How often a site was in a sum of this job, and how often it was asked for one in vain."""

    paid: int = 0
    missed: int = 0


def cohort_size(plan: Plan, sites: int) -> int:
    """How many of ``sites`` a round asks: the plan's share, and never fewer than its minimum."""
    wanted = math.ceil(plan.participation.fraction * sites - 1e-9)
    return min(sites, max(wanted, plan.cohort.minimum + plan.participation.spare))


def select_sites(
    plan: Plan,
    labels: Mapping[int, str],
    present: Collection[int],
    history: Mapping[int, SiteHistory],
    csprng: Csprng,
) -> tuple[int, ...]:
    """The roster indices to ask, ascending; all that are ``present`` when those are not too many.

    ``labels`` are the roster's. By ``participation.selection``:

    * "random": every present site is as likely as any other (McMahan et al. 2017).
    * "availability": those that missed the smallest share of what they were asked for, ties at
      random.
    * "budget": those that have paid for the fewest sums of this job, ties at random, so that all
      budgets last equally long.

    With ``participation.strata``, patterns of labels, every stratum has a part of the places in
    proportion to its sites in the roster (largest remainders); a site is in the first stratum that
    its label matches, and the rest are one more. Places that a stratum cannot fill go to others.
    """
    size = cohort_size(plan, len(labels))
    if len(present) <= size:
        return tuple(sorted(present))
    order = _ranked(plan, sorted(present), history, csprng)
    chosen: list[int] = []
    for members, places in _places(plan, labels, size):
        chosen += [site for site in order if site in members][:places]
    chosen += [site for site in order if site not in chosen][: size - len(chosen)]
    return tuple(sorted(chosen))


def _ranked(
    plan: Plan, sites: list[int], history: Mapping[int, SiteHistory], csprng: Csprng
) -> Sequence[int]:
    draws = {site: csprng.bytes(16) for site in sites}  # a collision is as likely as a broken key
    known = {site: history.get(site, SiteHistory()) for site in sites}

    def rank(site: int) -> tuple[float, bytes]:
        past = known[site]
        first = {
            "random": 0.0,
            "availability": past.missed / max(past.paid + past.missed, 1),
            "budget": float(past.paid),
        }[plan.participation.selection]
        return first, draws[site]

    return sorted(sites, key=rank)


def _places(plan: Plan, labels: Mapping[int, str], size: int) -> list[tuple[set[int], int]]:
    strata = plan.participation.strata
    groups: list[set[int]] = [set() for _ in range(len(strata) + 1)]
    for site, label in labels.items():
        fits = (i for i, pattern in enumerate(strata) if fnmatchcase(label, pattern))
        groups[next(fits, len(strata))].add(site)
    exact = [size * len(group) / len(labels) for group in groups]
    places = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(groups)), key=lambda i: places[i] - exact[i])
    for i in by_remainder[: size - sum(places)]:
        places[i] += 1
    return list(zip(groups, places, strict=True))
