"""What a sequence of ledger entries adds up to, and the rules each new entry must obey.

:meth:`Chain.add` is the only way in and is used for a site's own ledger and for an exported one, so
a site and its auditor can never disagree about what is valid. The rules, for entry number n:

1. it is canonical and signed by the ledger's key;
2. its number is n and it names the hash of entry n - 1 (zeros for n = 0);
3. an account is opened once, with a budget that can pay for something;
4. a reservation is on an open account, for a context never used before, with the account's unit
   and adjacency;
5. its price is the event's divergence at the account's order, and the account's filter admits it;
6. a settlement names a context reserved on that account and not yet settled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Refusal, Violation
from fedflow.privacy.accounting import FixedOrderFilter, rdp_at
from fedflow.privacy.entries import (
    GENESIS,
    Entry,
    Opened,
    Reserved,
    Settled,
    entry_hash,
    read_entry,
)
from fedflow.privacy.events import ReleaseEvent

PRICE_TOLERANCE = 1e-6
"""Relative difference allowed between a stored price and a recomputed one: libraries may differ in
the last digits over the years, mechanisms may not."""


@dataclass
class AccountState:
    """One account so far: what it was opened with and the reservations charged to it."""

    opened: Opened
    filter: FixedOrderFilter
    reserved: list[Reserved] = field(default_factory=list)
    total: Fraction = Fraction(0)

    @property
    def spent(self) -> float:
        """Renyi divergence reserved so far at the account's order."""
        return float(self.total)

    def charge(self, entry: Reserved) -> None:
        """Count ``entry``, which the rules have admitted. The sum is exact, so it never drifts."""
        self.reserved.append(entry)
        self.total += Fraction(entry.rho)

    @property
    def events(self) -> list[ReleaseEvent]:
        """The mechanisms paid for, oldest first."""
        return [entry.release_event for entry in self.reserved]

    def price(self, event: ReleaseEvent) -> float:
        """Divergence of ``event`` at the account's order; Refusal when unit or adjacency differ."""
        if (event.unit, event.adjacency) != (self.opened.unit, self.opened.adjacency):
            raise Refusal(
                "wrong-unit",
                f"account {self.opened.account} protects {self.opened.unit}"
                f" ({self.opened.adjacency}), the release {event.unit} ({event.adjacency})",
            )
        return rdp_at(event, self.opened.order)

    def quote(self, event: ReleaseEvent) -> tuple[float, float]:
        """(price, epsilon left once paid); Refusal ``budget-exhausted`` when it cannot be paid."""
        rho, spent = self.price(event), self.spent
        if not self.filter.admits(spent, rho):
            held = self.filter.epsilon(spent)
            wanted = self.filter.epsilon(spent + rho)
            raise Refusal(
                "budget-exhausted",
                f"account {self.opened.account} has spent epsilon {held:.4f} of"
                f" {self.opened.epsilon:.4f} (delta {self.opened.delta:g}); this release would"
                f" take it to {wanted:.4f}",
            )
        left = self.opened.epsilon - self.filter.epsilon(math.fsum((spent, rho)))
        return rho, max(0.0, left)


class Chain:
    """The state after a sequence of entries signed by ``key``."""

    def __init__(self, key: PublicKey) -> None:
        self.key = key
        self.head = GENESIS
        self.entries: list[Entry] = []
        self.accounts: dict[str, AccountState] = {}
        self.reserved: dict[bytes, Reserved] = {}
        self.settled: dict[bytes, Settled] = {}

    def add(self, signed: bytes) -> Entry:
        """Append one signed entry; Violation, and no change, when a rule is broken."""
        entry = read_entry(signed, self.key)  # rule 1
        if entry.seq != len(self.entries):  # rule 2
            raise Violation("broken-chain", f"it says it is number {entry.seq}")
        if entry.previous != self.head:
            raise Violation("broken-chain", "it does not follow the entry before it")
        if isinstance(entry, Opened):
            self._open(entry)
        elif isinstance(entry, Reserved):
            self._reserve(entry)
        else:
            self._settle(entry)
        self.entries.append(entry)
        self.head = entry_hash(signed)
        return entry

    def account(self, name: str) -> AccountState:
        """The open account ``name``; Refusal ``no-account`` when there is none."""
        state = self.accounts.get(name)
        if state is None:
            raise Refusal("no-account", f"no privacy budget was opened for {name!r}")
        return state

    def _open(self, entry: Opened) -> None:
        if entry.account in self.accounts:  # rule 3
            raise Violation("bad-entry", f"account {entry.account} is opened a second time")
        try:
            bound = FixedOrderFilter(entry.epsilon, entry.delta, entry.order)
        except Refusal as err:
            raise Violation("bad-entry", err.message) from None
        self.accounts[entry.account] = AccountState(entry, bound)

    def _reserve(self, entry: Reserved) -> None:
        state = self.accounts.get(entry.account)  # rule 4
        if state is None:
            raise Violation("bad-entry", f"account {entry.account} was never opened")
        if entry.context in self.reserved:
            raise Violation("bad-entry", "its context was reserved before")
        try:
            price = state.price(entry.release_event)
        except Refusal as err:
            raise Violation("bad-entry", err.message) from None
        fair = math.isfinite(price) and abs(entry.rho - price) <= PRICE_TOLERANCE * price
        if not fair:  # rule 5
            raise Violation("bad-price", f"it charges {entry.rho!r} for what costs {price!r}")
        if not state.filter.admits(state.spent, entry.rho):
            raise Violation("over-budget", f"it spends more than account {entry.account} holds")
        state.charge(entry)
        self.reserved[entry.context] = entry

    def _settle(self, entry: Settled) -> None:
        paid = self.reserved.get(entry.context)  # rule 6
        if paid is None or paid.account != entry.account:
            raise Violation("bad-entry", "it settles what was never reserved on that account")
        if entry.context in self.settled:
            raise Violation("bad-entry", "it settles a reservation a second time")
        self.settled[entry.context] = entry
