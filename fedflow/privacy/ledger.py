"""The privacy ledger of one site: what was spent, on what, provably, before it left.

A release is paid for in this order, and in no other: :meth:`Ledger.reserve` makes the charge and
the very bytes to be released durable in one transaction; then the bytes may leave; later
:meth:`Ledger.settle` notes what became of them. After a crash the site finds the same bytes again
(:meth:`Ledger.release`) and re-sends them, so no noise is ever drawn twice for one charge.

What is reserved is the worst case: the fewest sites a sum opens for. Settling replaces it by what
was, for the survivors that enough sites signed and this one verified before it answered. Nothing
else changes a charge: after a crash, an aborted round or a silent server the worst case stays.
docs/privacy.md shows why that is sound. Plans on an account that charges whole plans
(:meth:`Ledger.commit_plan`) are never refunded at all.

What it cannot see: an older copy of the whole file put back in its place is valid in itself. Others
remember how long the ledger was (:mod:`fedflow.secagg.positions`), and so does the site beside it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import Misuse, Refusal, Violation
from fedflow.privacy.accounting import FixedOrderFilter
from fedflow.privacy.accounts import Charge, FixedPlanAccount
from fedflow.privacy.entries import (
    ADAPTIVE,
    TAKEOVER_LABEL,
    Committed,
    Entry,
    Head,
    Opened,
    Reserved,
    Rotated,
    Settled,
    sign_head,
)
from fedflow.privacy.events import ReleaseEvent
from fedflow.privacy.export import write_export
from fedflow.privacy.facts import SqliteFacts
from fedflow.privacy.journal import Journal
from fedflow.privacy.status import AccountStatus, status_of
from fedflow.privacy.store import Store

__all__ = ["AccountStatus", "Ledger", "SqliteFacts"]

BUSY_SECONDS = 20.0
MAX_RELEASE_BYTES = 512 << 20


class Ledger:
    """An append-only, hash-chained, signed ledger in one SQLite file.

    Opened with the site's :class:`Identity` it can be written; with a :class:`PublicKey` it can
    only be read, whoever signed it. Safe to share between threads and processes.
    """

    def __init__(self, journal: Journal, clock: Callable[[], int]) -> None:
        self._journal = journal
        self._clock = clock

    @classmethod
    def create(
        cls,
        path: str | Path,
        identity: Identity,
        label: str,
        *,
        clock: Callable[[], int] | None = None,
        busy_seconds: float = BUSY_SECONDS,
    ) -> Self:
        """A new ledger for the site ``label``; InputError when something is at ``path`` already.

        ``clock`` gives milliseconds since 1970 (UTC).
        """
        store = Store.create(Path(path), identity.public.raw, label, busy_seconds)
        return cls(Journal(store, identity), clock or _now)

    @classmethod
    def open(
        cls,
        path: str | Path,
        key: Identity | PublicKey | None,
        *,
        clock: Callable[[], int] | None = None,
        busy_seconds: float = BUSY_SECONDS,
    ) -> Self:
        """Open a ledger and verify all of it: every signature, hash, price and stored release.

        ``key`` is the site's key now; None reads the ledger under whichever key it goes on with,
        for the caller to look at. InputError naming the entry when anything was changed, or when it
        is another site's ledger.
        """
        writable = isinstance(key, Identity)
        store = Store.open(Path(path), writable=writable, busy_seconds=busy_seconds)
        try:
            journal = Journal(store, key)
            journal.verify()
        except BaseException:
            store.close()
            raise
        return cls(journal, clock or _now)

    @property
    def key(self) -> PublicKey:
        """The public key that signs the ledger's next entry."""
        return self._journal.chain.key

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """Every key the ledger was signed with, oldest first."""
        return tuple(self._journal.chain.keys)

    @property
    def label(self) -> str:
        """The site's name, as given when the ledger was created."""
        return self._journal.label

    def facts(self) -> SqliteFacts:
        """Durable single-shot facts kept in the same file."""
        return SqliteFacts(self._journal.store)

    def close(self) -> None:
        """Close the file."""
        self._journal.store.close()

    def open_account(
        self,
        account: str,
        *,
        epsilon: float,
        delta: float,
        order: float = 0.0,
        unit: str = "person",
        adjacency: str = "zero-out",
        accounting: str = ADAPTIVE,
    ) -> Opened:
        """Open ``account`` ("dataset/partition") with its budget, fixed for good.

        ``accounting`` "adaptive" charges every release at a Renyi ``order``, which must be chosen
        from public parameters (see ``choose_order``); "fixed-plan" charges whole plans and has no
        order. Opening it again with the same figures returns the existing entry; with others it is
        a Refusal ``account-exists``: budgets are never rewritten. Refusal ``bad-budget`` when it
        could never pay for anything.
        """
        if accounting == ADAPTIVE:
            FixedOrderFilter(epsilon, delta, order)
        with self._journal.writing() as write:
            state = self._journal.chain.accounts.get(account)
            entry = Opened(
                *self._place(),
                account=account,
                label=self._journal.label,
                epsilon=float(epsilon),
                delta=float(delta),
                order=float(order),
                unit=unit,
                adjacency=adjacency,
                accounting=accounting,
            )
            if state is not None:
                old = state.opened
                if replace(entry, seq=old.seq, previous=old.previous, time=old.time) != old:
                    raise Refusal(
                        "account-exists",
                        f"account {account} already has epsilon {old.epsilon:g}, delta"
                        f" {old.delta:g} for one {old.unit}, accounting {old.accounting} at Renyi"
                        f" order {old.order:g}; a budget is never rewritten",
                    )
                return old
            write(entry, None)
            return entry

    def check(self, account: str, event: ReleaseEvent, *, manifest: bytes = b"") -> float:
        """The epsilon that would be left after paying for ``event``; writes nothing.

        Refusal ``budget-exhausted`` with the figures when it cannot be paid, ``no-account`` when
        there is no such account; on a fixed-plan account ``no-commitment`` when the plan with this
        ``manifest`` (32 B) was not charged. Only :meth:`reserve` is binding.
        """
        with self._journal.reading():
            return self._journal.chain.account(account).quote(event, manifest)[1]

    def check_plan(
        self,
        account: str,
        event: ReleaseEvent,
        *,
        manifest: bytes,
        planned: int,
        spare: int,
        delta: float,
    ) -> float:
        """The epsilon that would be left after :meth:`commit_plan`, with its refusals.

        A plan that was charged before costs nothing more. Writes nothing.
        """
        with self._journal.reading():
            state = self._plans_of(account)
            if manifest in state.plans:
                return state.quote(event, manifest)[1]
            return state.quote_plan(event, planned + spare, delta)[1]

    def commit_plan(
        self,
        account: str,
        event: ReleaseEvent,
        *,
        job: str,
        manifest: bytes,
        planned: int,
        spare: int,
        delta: float,
    ) -> Committed:
        """Charge a plan whole, durably: ``planned`` + ``spare`` releases of ``event`` at ``delta``.

        To be called before the plan touches any data, and once: the same plan again returns the
        first entry, with the ``spare`` attempts that were paid for then. Whatever becomes of the
        plan, the charge stays. Refusals: ``budget-exhausted``, ``no-account``, ``wrong-unit``,
        ``wrong-accounting``, ``ledger-unavailable``; Violation ``already-committed`` when this
        ``manifest`` (32 B) was charged for something else.
        """
        with self._journal.writing() as write:
            state = self._plans_of(account)
            old = state.plans.get(manifest)
            if old is not None:
                same = (old.job, old.event, old.planned, old.delta)
                if same != (job, event.canonical(), planned, float(delta)):
                    raise Violation(
                        "already-committed", "this manifest was charged for a different plan"
                    )
                return old
            epsilon, _left = state.quote_plan(event, planned + spare, delta)
            entry = Committed(
                *self._place(),
                account=account,
                job=job,
                manifest=manifest,
                event=event.canonical(),
                planned=planned,
                spare=spare,
                epsilon=epsilon,
                delta=float(delta),
            )
            write(entry, None)
            return entry

    def rotate(self, new: Identity) -> Rotated:
        """Go on under the key ``new``, durably: accounts, charges and what is left stay.

        Doing it again with the key the ledger has already returns that entry. After it, other open
        handles with the old key can only read. Violation when the ledger had this key before.
        """
        with self._journal.reading():
            done = self._journal.chain.entries[-1:]
            if self.key == new.public and done and isinstance(done[0], Rotated):
                return done[0]
            if new.public in self.keys:
                raise Violation("bad-entry", "the ledger had this key before; make a new one")
        with self._journal.writing() as write:
            seq, previous, now = self._place()
            agreed = Rotated.taken_over(seq, previous, self.key.raw, new.public.raw)
            consent = new.sign(TAKEOVER_LABEL, agreed)
            entry = Rotated(seq, previous, now, new.public.raw, consent)
            write(entry, None)
        self._journal.go_on_as(new)
        return entry

    def _place(self) -> tuple[int, bytes, int]:
        """Number, previous hash and time of the next entry."""
        chain = self._journal.chain
        return len(chain.entries), chain.head, self._clock()

    def _plans_of(self, account: str) -> FixedPlanAccount:
        state = self._journal.chain.account(account)
        if not isinstance(state, FixedPlanAccount):
            raise Refusal("wrong-accounting", f"account {account} charges releases, not plans")
        return state

    def reserve(
        self,
        account: str,
        event: ReleaseEvent,
        *,
        context: bytes,
        job: str,
        manifest: bytes,
        round: int,
        attempt: int,
        purpose: str,
        release: bytes,
    ) -> Reserved:
        """Charge ``event`` to ``account`` and store ``release``, the bytes it pays for, durably.

        Only when this has returned may ``release`` leave the site. ``context`` (32 B) is single
        use: reserving it again with the same bytes returns the first entry and charges nothing;
        with anything else it is Violation ``already-reserved``. Refusals: ``budget-exhausted``,
        ``no-account``, ``wrong-unit``, ``ledger-unavailable`` (full disk and the like), on a
        fixed-plan account ``no-commitment`` and ``wrong-event``; after each nothing was written and
        nothing may be released.
        """
        if not 0 < len(release) <= MAX_RELEASE_BYTES:
            raise Misuse(f"a release has 1 to {MAX_RELEASE_BYTES} bytes")
        digest = hashlib.sha256(release).digest()
        with self._journal.writing() as write:
            old = self._journal.chain.reserved.get(context)
            if old is not None:
                same = (old.account, old.event, old.release_hash, old.purpose, old.manifest) == (
                    account,
                    event.canonical(),
                    digest,
                    purpose,
                    manifest,
                )
                if not same:
                    raise Violation(
                        "already-reserved",
                        "this context has already paid for a different release",
                    )
                return old
            rho, _left = self._journal.chain.account(account).quote(event, manifest)
            entry = Reserved(
                *self._place(),
                account=account,
                purpose=purpose,
                job=job,
                manifest=manifest,
                round=round,
                attempt=attempt,
                context=context,
                event=event.canonical(),
                rho=rho,
                release_hash=digest,
            )
            write(entry, release)
            return entry

    def settle(self, context: bytes, survivors: int) -> Settled:
        """Charge the release for ``context`` as it was, in a sum of ``survivors`` sites.

        To be called only once the survivor set is fixed for good: signed by as many sites as the
        protocol asks for, and verified here. Settling again with the same number returns the first
        entry; Violation ``already-settled`` for another number, ``not-reserved`` for an unknown
        context; Misuse for fewer sites than such a sum opens for.
        """
        with self._journal.writing() as write:
            paid = self._journal.chain.reserved.get(context)
            if paid is None:
                raise Violation("not-reserved", "nothing was reserved for this context")
            old = self._journal.chain.settled.get(context)
            if old is not None:
                if old.survivors != survivors:
                    raise Violation("already-settled", f"it was settled at {old.survivors} sites")
                return old
            entry = Settled(
                *self._place(),
                account=paid.account,
                context=context,
                survivors=survivors,
                rho=self._journal.chain.account(paid.account).settled_price(paid, survivors),
            )
            write(entry, None)
            return entry

    def release(self, context: bytes) -> bytes | None:
        """The stored bytes paid for by ``context``, or None when nothing was reserved for it."""
        with self._journal.reading() as db:
            paid = self._journal.chain.reserved.get(context)
            if paid is None:
                return None
            return self._journal.stored_release(db, paid)

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, oldest first."""
        with self._journal.reading():
            return tuple(self._journal.chain.entries)

    def head(self) -> tuple[int, bytes]:
        """(number of entries, hash of the last one): what a backup must not be older than."""
        with self._journal.reading():
            return len(self._journal.chain.entries), self._journal.chain.head

    def head_at(self, entries: int) -> bytes | None:
        """The hash of the last of the first ``entries`` entries; None when there are fewer."""
        with self._journal.reading():
            return self._journal.chain.head_at(entries)

    def export(self, path: str | Path) -> None:
        """Write every signed entry and a signed head to ``path`` for an auditor (JSON lines)."""
        identity = self._journal.identity
        if identity is None:
            raise Misuse("exporting signs the head: open the ledger with the site's identity")
        with self._journal.reading() as db:
            signed = [row[0] for row in db.execute("SELECT signed FROM entries ORDER BY seq")]
            head = Head(len(signed), self._journal.chain.head, self._clock())
            first, *later = self._journal.chain.keys
        write_export(path, signed, sign_head(head, identity), first if later else None)

    def accounts(self) -> tuple[str, ...]:
        """The names of all open accounts, in the order they were opened."""
        with self._journal.reading():
            return tuple(self._journal.chain.accounts)

    def charges(self, account: str) -> tuple[Charge, ...]:
        """Every release charged to ``account``, oldest first; Refusal ``no-account``."""
        with self._journal.reading():
            charges = self._journal.chain.account(account).charges.values()
            return tuple(replace(charge) for charge in charges)

    def account_status(self, account: str) -> AccountStatus:
        """What was spent and what is left on ``account``; Refusal ``no-account``."""
        with self._journal.reading():
            return status_of(self._journal.chain.account(account))


def _now() -> int:
    return time.time_ns() // 1_000_000
