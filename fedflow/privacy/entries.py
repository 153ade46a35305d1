"""The entries of a privacy ledger, as canonical messages.

Five kinds exist: an account is opened with its budget, a plan is paid for as a whole, a release is
reserved, a reservation is settled, the site's key is replaced. Every entry carries its number and
the hash of the entry before it, and is signed by the site under the label "ledger entry". Entry 0
has 32 zero bytes in place of a previous hash and every account starts with its own :class:`Opened`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import Misuse, Violation
from fedflow.privacy.events import ADJACENCIES, MAX_EVENT_BYTES, UNITS, ReleaseEvent
from fedflow.wire.codec import (
    F64,
    U16,
    U32,
    U64,
    Bytes,
    Bytes32,
    Message,
    Signature,
    Text,
)

GENESIS = bytes(32)
ENTRY_LABEL = "ledger entry"
HEAD_LABEL = "ledger head"
TAKEOVER_LABEL = "ledger takeover"
PURPOSES = ("train", "evaluate")
ADAPTIVE = "adaptive"
FIXED_PLAN = "fixed-plan"
ACCOUNTINGS = (ADAPTIVE, FIXED_PLAN)
MAX_ENTRY_BYTES = 4096


Account = Annotated[str, Text(200)]


@dataclass(frozen=True, slots=True)
class Opened(Message, type_id=50, version=2):
    """An account, its budget and how it is spent, fixed for good.

    ``accounting`` "adaptive": every release is charged its Renyi divergence at ``order``.
    "fixed-plan": every plan is charged as a whole, and ``order`` is 0. ``time`` is in milliseconds
    since 1970 (UTC).
    """

    kind: ClassVar[str] = "open"
    seq: U64
    previous: Bytes32
    time: U64
    account: Account
    label: Annotated[str, Text(100)]
    epsilon: F64
    delta: F64
    order: F64
    unit: Annotated[str, Text(32)]
    adjacency: Annotated[str, Text(32)]
    accounting: Annotated[str, Text(32)]

    def check(self) -> None:
        """Unit, adjacency and accounting are known and the budget is one a filter can hold."""
        if self.unit not in UNITS or self.adjacency not in ADJACENCIES:
            raise Violation("bad-entry", "account has an unknown unit or adjacency")
        if self.accounting not in ACCOUNTINGS:
            raise Violation("bad-entry", f"accounting {self.accounting!r} is not in {ACCOUNTINGS}")
        if not (self.epsilon > 0.0 and 0.0 < self.delta < 1.0):
            raise Violation("bad-entry", "account has an impossible budget")
        if not (self.order > 1.0 if self.accounting == ADAPTIVE else self.order == 0.0):
            raise Violation("bad-entry", "account has a Renyi order its accounting cannot have")


@dataclass(frozen=True, slots=True)
class Committed(Message, type_id=55, version=1):
    """One plan, paid for as a whole before its first release; nothing of it is ever given back.

    ``event`` is one release of the plan, ``planned`` how many releases its rounds are and ``spare``
    how many more may be needed because attempts fail. All of them together are (``epsilon``,
    ``delta``)-DP. ``manifest`` (32 B) is the hash of what fixed the plan.
    """

    kind: ClassVar[str] = "commit"
    seq: U64
    previous: Bytes32
    time: U64
    account: Account
    job: Annotated[str, Text(63)]
    manifest: Bytes32
    event: Annotated[str, Text(MAX_EVENT_BYTES)]
    planned: U32
    spare: U32
    epsilon: F64
    delta: F64

    def check(self) -> None:
        """The event is known, can be repeated so often, and the charge is one."""
        if self.planned < 1 or not (self.epsilon >= 0.0 and 0.0 < self.delta < 1.0):
            raise Violation("bad-entry", "a plan has releases, and a price")
        try:
            self.release_event.repeated(self.releases)
        except Misuse as err:
            raise Violation("bad-entry", err.message) from None

    @property
    def release_event(self) -> ReleaseEvent:
        """The mechanism of one release."""
        return ReleaseEvent.from_canonical(self.event)

    @property
    def releases(self) -> int:
        """How many releases are paid for."""
        return self.planned + self.spare


@dataclass(frozen=True, slots=True)
class Reserved(Message, type_id=51, version=1):
    """One charge, durable before the bytes it pays for may leave.

    ``context`` (32 B) names the one use of the noise it pays for; ``release_hash`` is SHA-256 of
    the released bytes; ``rho`` is the event's Renyi divergence at the account's order, and 0 on a
    fixed-plan account, where the plan was paid for before.
    """

    kind: ClassVar[str] = "reserve"
    seq: U64
    previous: Bytes32
    time: U64
    account: Account
    purpose: Annotated[str, Text(32)]
    job: Annotated[str, Text(63)]
    manifest: Bytes32
    round: U32
    attempt: U32
    context: Bytes32
    event: Annotated[str, Text(MAX_EVENT_BYTES)]
    rho: F64
    release_hash: Bytes32

    def check(self) -> None:
        """Purpose and event are known and the price is a price."""
        if self.purpose not in PURPOSES:
            raise Violation("bad-entry", f"purpose {self.purpose!r} is not one of {PURPOSES}")
        if not self.rho >= 0.0:
            raise Violation("bad-entry", "a price is never negative")
        ReleaseEvent.from_canonical(self.event)

    @property
    def release_event(self) -> ReleaseEvent:
        """The mechanism that was paid for."""
        return ReleaseEvent.from_canonical(self.event)


@dataclass(frozen=True, slots=True)
class Settled(Message, type_id=52, version=2):
    """How many sites' sum the reservation for ``context`` was opened in, and what that costs.

    ``rho`` takes the place of what was reserved: the divergence of the event with the noise that
    ``survivors`` sites added together. It is never more than was reserved.
    """

    kind: ClassVar[str] = "settle"
    seq: U64
    previous: Bytes32
    time: U64
    account: Account
    context: Bytes32
    survivors: U16
    rho: F64

    def check(self) -> None:
        """The price is a price."""
        if not self.rho >= 0.0:
            raise Violation("bad-entry", "a price is never negative")


@dataclass(frozen=True, slots=True)
class Rotated(Message, type_id=56, version=1):
    """From the next entry on the ledger is signed by ``new_key``; this one is by the old key.

    ``consent`` is the new key's signature over :meth:`taken_over` under the label "ledger
    takeover": by it the new key vouches for every entry up to here, so an auditor who was given
    either key can follow the whole ledger, and nobody's key is put on a ledger they did not take.
    """

    kind: ClassVar[str] = "rotate"
    account: ClassVar[str] = ""
    seq: U64
    previous: Bytes32
    time: U64
    new_key: Bytes32
    consent: Signature

    @staticmethod
    def taken_over(seq: int, previous: bytes, old_key: bytes, new_key: bytes) -> bytes:
        """What the new key signs: what came before, and both keys."""
        return seq.to_bytes(8, "big") + previous + old_key + new_key


@dataclass(frozen=True, slots=True)
class Head(Message, type_id=53, version=1):
    """The end of an exported ledger: how many entries there are and the hash of the last one."""

    kind: ClassVar[str] = "head"
    entries: U64
    hash: Bytes32
    time: U64


@dataclass(frozen=True, slots=True)
class SignedEntry(Message, type_id=54, version=1):
    """One entry or head with the site's signature."""

    body: Annotated[bytes, Bytes(MAX_ENTRY_BYTES)]
    signature: Signature


Entry = Opened | Committed | Reserved | Settled | Rotated
_TYPES: dict[
    int, type[Opened] | type[Committed] | type[Reserved] | type[Settled] | type[Rotated]
] = {
    Opened.TYPE: Opened,
    Committed.TYPE: Committed,
    Reserved.TYPE: Reserved,
    Settled.TYPE: Settled,
    Rotated.TYPE: Rotated,
}


def sign_entry(entry: Entry, identity: Identity) -> bytes:
    """The signed encoding of ``entry``."""
    body = entry.encode()
    return SignedEntry(body, identity.sign(ENTRY_LABEL, body)).encode()


def sign_head(head: Head, identity: Identity) -> bytes:
    """The signed encoding of ``head``, under a label of its own."""
    body = head.encode()
    return SignedEntry(body, identity.sign(HEAD_LABEL, body)).encode()


def read_entry(signed: bytes, key: PublicKey) -> Entry:
    """The entry in ``signed``; Violation unless canonical and signed by ``key``."""
    outer = SignedEntry.decode(signed)
    key.verify(ENTRY_LABEL, outer.body, outer.signature)
    kind = _TYPES.get(outer.body[0]) if outer.body else None
    if kind is None:
        raise Violation("wrong-type", "this is not a ledger entry")
    return kind.decode(outer.body)


def read_head(signed: bytes, key: PublicKey) -> Head:
    """The head in ``signed``; Violation unless canonical and signed by ``key``."""
    outer = SignedEntry.decode(signed)
    key.verify(HEAD_LABEL, outer.body, outer.signature)
    return Head.decode(outer.body)


def entry_hash(signed: bytes) -> bytes:
    """What the next entry names as its previous one: 32 bytes over entry and signature."""
    return hashlib.sha256(b"fedflow/1 ledger entry\0" + signed).digest()
