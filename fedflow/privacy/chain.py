"""What a sequence of ledger entries adds up to, and the rules each new entry must obey.

:meth:`Chain.add` is the only way in and is used for a site's own ledger and for an exported one, so
a site and its auditor can never disagree about what is valid. The rules, for entry number n:

1. it is canonical and signed by the ledger's key, which is the first one until it is replaced;
2. its number is n and it names the hash of entry n - 1 (zeros for n = 0);
3. an account is opened once, with a budget that can pay for something;
4. a plan is charged once, on an open account of plans fixed beforehand, with the account's unit and
   adjacency; its epsilon is that of all its releases, and both sums stay within the budget;
5. a reservation is on an open account, for a context never used before, with the account's unit
   and adjacency;
6. its price is the event's divergence at the account's order, and the account's filter admits it;
   or its plan was charged, for this event, and has releases left;
7. a settlement names a context reserved on that account and not yet settled, and at least as many
   sites as a sum opens for; its price is that of the noise so many sites add, and never more than
   what was reserved;
8. a replacement of the key is agreed to by the new key, which the ledger never had before. Nothing
   else changes with it: accounts, charges and what is left go on.

How prices and budgets work is in :mod:`fedflow.privacy.accounts`.
"""

from __future__ import annotations

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Refusal, Violation
from fedflow.privacy.accounts import Account, open_account
from fedflow.privacy.entries import (
    GENESIS,
    TAKEOVER_LABEL,
    Committed,
    Entry,
    Opened,
    Reserved,
    Rotated,
    Settled,
    entry_hash,
    read_entry,
)


class Chain:
    """The state after a sequence of entries.

    ``keys`` are the ledger's keys, oldest first; the first is given, others come by rule 8.
    """

    def __init__(self, first_key: PublicKey) -> None:
        self.keys = [first_key]
        self.head = GENESIS
        self.entries: list[Entry] = []
        self.accounts: dict[str, Account] = {}
        self.reserved: dict[bytes, Reserved] = {}
        self.settled: dict[bytes, Settled] = {}

    @property
    def key(self) -> PublicKey:
        """Who signs the next entry."""
        return self.keys[-1]

    def add(self, signed: bytes) -> Entry:
        """Append one signed entry; Violation, and no change, when a rule is broken."""
        entry = read_entry(signed, self.key)  # rule 1
        if entry.seq != len(self.entries):  # rule 2
            raise Violation("broken-chain", f"it says it is number {entry.seq}")
        if entry.previous != self.head:
            raise Violation("broken-chain", "it does not follow the entry before it")
        if isinstance(entry, Opened):
            self._open(entry)
        elif isinstance(entry, Committed):
            self._owner(entry).commit(entry)  # rule 4
        elif isinstance(entry, Reserved):
            self._reserve(entry)
        elif isinstance(entry, Rotated):
            self._rotate(entry)
        else:
            self._settle(entry)
        self.entries.append(entry)
        self.head = entry_hash(signed)
        return entry

    def head_at(self, entries: int) -> bytes | None:
        """The hash of the last of the first ``entries`` entries; None when there are fewer."""
        if entries < len(self.entries):
            return self.entries[entries].previous
        return self.head if entries == len(self.entries) else None

    def account(self, name: str) -> Account:
        """The open account ``name``; Refusal ``no-account`` when there is none."""
        state = self.accounts.get(name)
        if state is None:
            raise Refusal("no-account", f"no privacy budget was opened for {name!r}")
        return state

    def _open(self, entry: Opened) -> None:
        if entry.account in self.accounts:  # rule 3
            raise Violation("bad-entry", f"account {entry.account} is opened a second time")
        try:
            self.accounts[entry.account] = open_account(entry)
        except Refusal as err:
            raise Violation("bad-entry", err.message) from None

    def _owner(self, entry: Committed | Reserved) -> Account:
        state = self.accounts.get(entry.account)
        if state is None:
            raise Violation("bad-entry", f"account {entry.account} was never opened")
        return state

    def _reserve(self, entry: Reserved) -> None:
        state = self._owner(entry)  # rule 5
        if entry.context in self.reserved:
            raise Violation("bad-entry", "its context was reserved before")
        try:
            state.reserve(entry)  # rule 6
        except Refusal as err:
            raise Violation("bad-entry", err.message) from None
        self.reserved[entry.context] = entry

    def _settle(self, entry: Settled) -> None:
        paid = self.reserved.get(entry.context)  # rule 7
        if paid is None or paid.account != entry.account:
            raise Violation("bad-entry", "it settles what was never reserved on that account")
        if entry.context in self.settled:
            raise Violation("bad-entry", "it settles a reservation a second time")
        self.accounts[entry.account].settle(entry)
        self.settled[entry.context] = entry

    def _rotate(self, entry: Rotated) -> None:
        new = PublicKey(entry.new_key)  # rule 8
        if new in self.keys:
            raise Violation("bad-entry", "it takes back a key that the ledger had before")
        agreed = Rotated.taken_over(entry.seq, entry.previous, self.key.raw, new.raw)
        new.verify(TAKEOVER_LABEL, agreed, entry.consent)
        self.keys.append(new)
