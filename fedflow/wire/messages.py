"""The messages of a job outside secure aggregation: manifest, order, answers.

Each is signed under its own label (see :mod:`fedflow.wire.sealed`), so a signature made for one
kind of message never verifies as another. Hashes are SHA-256 over a label, a zero byte and the
canonical encoding.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar

from fedflow.errors import Violation
from fedflow.wire.codec import (
    F64,
    U16,
    U32,
    U64,
    Bytes,
    Bytes32,
    ListOf,
    Message,
    Nested,
    Text,
    UInt,
)

MAX_SITES = 16_384
MAX_PLAN_BYTES = 65_536
JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
LABEL = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def labelled_hash(label: str, data: bytes) -> bytes:
    """SHA-256("fedflow/1 " ‖ label ‖ 0x00 ‖ data): 32 bytes, domain-separated by ``label``."""
    return hashlib.sha256(b"fedflow/1 " + label.encode() + b"\0" + data).digest()


class Kind(IntEnum):
    """What a round releases: a training update, or evaluation statistics."""

    TRAIN = 1
    EVALUATE = 2

    @property
    def word(self) -> str:
        """``train`` or ``evaluate``, as ledgers and screens write it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class RosterEntry(Message, type_id=1):
    """One site of a job: its index, Ed25519 public key and human label."""

    index: U16
    public_key: Bytes32
    label: Annotated[str, Text(32)]

    def check(self) -> None:
        """The label is a plain name."""
        if not LABEL.fullmatch(self.label):
            raise Violation("bad-label", "a site label is not lower-case letters, digits, dashes")


@dataclass(frozen=True, slots=True)
class Manifest(Message, type_id=2):
    """What a job is, fixed before it starts; signed by the authority, counter-signed by each site.

    ``plan`` is the plan's canonical JSON, ``model_spec`` the hash of names, shapes and dtypes,
    ``initial_model`` the SHA-256 of the first model file, ``value_range`` what updates of the first
    round are clamped to; times are seconds since the epoch.
    """

    SEAL: ClassVar[str] = "manifest"

    job: Annotated[str, Text(63)]
    coordinator: Bytes32
    roster: Annotated[tuple[RosterEntry, ...], ListOf(Nested(RosterEntry), MAX_SITES)]
    colluders: U16
    minimum: U16
    dimension: U32
    model_spec: Bytes32
    initial_model: Bytes32
    value_range: F64
    plan: Annotated[bytes, Bytes(MAX_PLAN_BYTES)]
    created: U64
    not_after: U64

    def check(self) -> None:
        """The job id is a plain name; indices, keys and labels are distinct and sorted."""
        if not JOB_ID.fullmatch(self.job):
            raise Violation("bad-job-id", "the job id is not lower-case letters, digits, dashes")
        indices = [entry.index for entry in self.roster]
        if indices != sorted(set(indices)):
            raise Violation("bad-roster", "site indices are not distinct and ascending")
        for values in ({e.public_key for e in self.roster}, {e.label for e in self.roster}):
            if len(values) != len(self.roster):
                raise Violation("bad-roster", "two sites share a key or a label")
        if self.created >= self.not_after:
            raise Violation("bad-manifest", "the manifest ends before it begins")
        if not self.value_range > 0.0:
            raise Violation("bad-manifest", "the range of values is not above zero")

    def digest(self) -> bytes:
        """The manifest hash every later message is bound to."""
        return labelled_hash("manifest", self.encode())


@dataclass(frozen=True, slots=True)
class Countersignature(Message, type_id=3):
    """A site binds itself to a manifest. Signed by the site."""

    SEAL: ClassVar[str] = "countersignature"

    manifest: Bytes32
    site: U16


@dataclass(frozen=True, slots=True)
class Order(Message, type_id=4):
    """The coordinator asks for one secure sum. ``sequence`` counts orders of the job from 1.

    ``deadline`` is in milliseconds since the epoch; ``previous`` the hash of the transcript it
    builds on (zeros for none); ``model`` and ``value_range`` are what that history produces.
    ``invited`` are the roster indices of the sites that are asked, ascending; none for all.
    """

    SEAL: ClassVar[str] = "order"

    manifest: Bytes32
    sequence: U32
    round: U32
    attempt: U16
    kind: Annotated[int, UInt(1, most=2)]
    model: Bytes32
    previous: Bytes32
    value_range: F64
    dimension: U32
    deadline: U64
    invited: Annotated[tuple[int, ...], ListOf(UInt(2), MAX_SITES)] = ()

    def check(self) -> None:
        """The kind is a known one; counting starts at one; who is invited is so once."""
        if list(self.invited) != sorted(set(self.invited)):
            raise Violation("not-ascending", "the invited sites are not distinct and ascending")
        if self.kind not in (Kind.TRAIN, Kind.EVALUATE):
            raise Violation("bad-order", "the order is for an unknown kind of round")
        if self.sequence < 1 or self.round < 1 or self.attempt < 1 or self.dimension < 1:
            raise Violation("bad-order", "sequence, round, attempt and dimension start at 1")
        if not self.value_range > 0.0:
            raise Violation("bad-order", "the range of values is not above zero")

    def invites(self, site: int) -> bool:
        """Whether the site with this roster index is asked."""
        return not self.invited or site in self.invited

    def asked(self, sites: Iterable[int]) -> set[int]:
        """Those of ``sites`` that are asked."""
        return set(sites).intersection(self.invited) if self.invited else set(sites)

    def digest(self) -> bytes:
        """The hash that names this order."""
        return labelled_hash("order", self.encode())


@dataclass(frozen=True, slots=True)
class Hello(Message, type_id=5):
    """A site says it is present for a job. ``session`` distinguishes its starts (random).

    With :func:`farewell` of a start as its session it says that this start is over.
    """

    SEAL: ClassVar[str] = "hello"

    manifest: Bytes32
    site: U16
    session: Bytes32


def farewell(session: bytes) -> bytes:
    """The session value with which a site says that its start ``session`` is over."""
    return labelled_hash("farewell", session)


@dataclass(frozen=True, slots=True)
class Decline(Message, type_id=6):
    """A site's signed, reasoned answer that it does not take part in an order.

    ``reason`` comes from a fixed catalogue and the plan's public numbers: never from data.
    ``rolled_back`` are the sites, ascending, whose ledgers it has seen further than they say now;
    a site that finds this of its own ledger names itself.
    """

    SEAL: ClassVar[str] = "decline"

    order: Bytes32
    site: U16
    code: Annotated[str, Text(64)]
    reason: Annotated[str, Text(500)]
    rolled_back: Annotated[tuple[int, ...], ListOf(UInt(2), MAX_SITES)] = ()

    def check(self) -> None:
        """The sites it names are distinct and ascending."""
        if list(self.rolled_back) != sorted(set(self.rolled_back)):
            raise Violation("not-ascending", "the sites it names are not distinct and ascending")


#: Code of a site that is stopped in the middle of an order: it is not waited for in this one, and
#: in later ones only once it said that it is back.
STOPPED = "site-stopped"


def leaves_job(kind: int, code: str) -> bool:
    """Whether a site that declines an order with ``code`` takes no further part in the job.

    Without budget to train there is nothing left for it to do; any other refusal is for one order.
    """
    return kind == Kind.TRAIN and code == "budget-exhausted"


@dataclass(frozen=True, slots=True)
class JobEnd(Message, type_id=7):
    """The coordinator closes the job; sites end their session."""

    SEAL: ClassVar[str] = "job end"

    manifest: Bytes32
    sequence: U32
    outcome: Annotated[str, Text(64)]
    reason: Annotated[str, Text(500)]
    model: Bytes32
