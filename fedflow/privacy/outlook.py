"""Where an account is heading: what was left after every charge, and how many more it pays for.

Read from ledger entries alone, through the accounts' own rules, so that a screen and an alarm can
never say anything but what the ledger would admit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedflow.privacy.accounting import rdp_at
from fedflow.privacy.accounts import Account, AdaptiveAccount, FixedPlanAccount, open_account
from fedflow.privacy.entries import Committed, Entry, Opened, Reserved, Rotated, Settled


@dataclass(frozen=True)
class Point:
    """What was left of epsilon at ``time`` (milliseconds since 1970, UTC), after ``releases``."""

    time: int
    releases: int
    left: float


@dataclass
class Outlook:
    """One account, followed from its opening on. ``points`` has one per entry, oldest first."""

    account: Account
    points: list[Point] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The account's name, ``dataset/partition``."""
        return self.account.opened.account

    @property
    def share_left(self) -> float:
        """What is left of epsilon as a share of the budget, 0 to 1."""
        return self.account.epsilon_left / self.account.opened.epsilon

    @property
    def rounds_left(self) -> int | None:
        """How many more rounds like the last one can be paid; None before the first plan.

        On an adaptive account each must be payable at its worst case and then counts as such rounds
        have cost so far once settled: that is the current rate. On a fixed-plan account: what the
        last plan has left, and the rounds of as many plans like it as the rest of the budget pays.
        """
        account = self.account
        if isinstance(account, AdaptiveAccount):
            return _releases_left(account)
        if isinstance(account, FixedPlanAccount):
            return _plans_left(account)
        return None

    def add(self, entry: Entry) -> None:
        """Follow one more entry of this account."""
        if isinstance(entry, Reserved):
            self.account.reserve(entry)
        elif isinstance(entry, Settled):
            self.account.settle(entry)
        elif isinstance(entry, Committed):
            self.account.commit(entry)
        releases = len(self.account.charges)
        self.points.append(Point(entry.time, releases, self.account.epsilon_left))


class Outlooks:
    """All accounts of one ledger, in the order they were opened."""

    def __init__(self) -> None:
        self.accounts: dict[str, Outlook] = {}
        self._seen = 0

    def follow(self, entries: Iterable[Entry]) -> None:
        """Take in the entries of a verified ledger; those seen before are skipped."""
        new = list(entries)[self._seen :]
        for entry in new:
            if isinstance(entry, Rotated):
                continue
            if isinstance(entry, Opened):
                self.accounts[entry.account] = Outlook(open_account(entry))
            self.accounts[entry.account].add(entry)
        self._seen += len(new)


def outlooks(entries: Iterable[Entry]) -> list[Outlook]:
    """The outlook of every account in the entries of a verified ledger."""
    made = Outlooks()
    made.follow(entries)
    return list(made.accounts.values())


def _releases_left(account: AdaptiveAccount) -> int | None:
    if not account.charges:
        return None
    charges = list(account.charges.values())
    # where one account pays for both, a round is a training round
    train = [charge for charge in charges if charge.reserved.purpose == "train"]
    last = (train or charges)[-1].reserved
    worst = rdp_at(last.release_event, account.opened.order)
    known = [
        charge.rho
        for charge in charges
        if charge.settled is not None and charge.reserved.event == last.event
    ]
    rate = math.fsum(known) / len(known) if known else worst
    room = account.filter.capacity - account.spent - worst
    return 0 if room < 0.0 else 1 + int(room / rate)


def _plans_left(account: FixedPlanAccount) -> int | None:
    if not account.plans:
        return None
    plan = list(account.plans.values())[-1]
    opened = account.opened
    more = min(
        int((opened.epsilon - account.epsilon_spent) / plan.epsilon) if plan.epsilon else 0,
        int((opened.delta - account.delta_spent) / plan.delta),
    )
    return plan.releases - account.used[plan.manifest] + more * plan.planned
