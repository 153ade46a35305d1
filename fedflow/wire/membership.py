"""Who belongs to a federation: one numbered list, signed by the authority, readable by everybody.

It is the only credential there is. A site that is in it, unrevoked and not expired, may write to
the relay and may be put into manifests; a higher serial replaces a lower one, for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar

from fedflow.errors import Violation
from fedflow.wire.codec import U32, U64, Bytes32, ListOf, Message, Nested, Text, UInt
from fedflow.wire.messages import LABEL, MAX_SITES


class Role(IntEnum):
    """What a member may do. An auditor only reads."""

    SITE = 1
    COORDINATOR = 2
    AUDITOR = 3

    @property
    def word(self) -> str:
        """``site``, ``coordinator`` or ``auditor``."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Member(Message, type_id=70):
    """One key of a federation. Times are seconds since the epoch; ``revoked`` is 0 for not."""

    role: Annotated[int, UInt(1, most=3)]
    label: Annotated[str, Text(32)]
    public_key: Bytes32
    not_before: U64
    not_after: U64
    revoked: U64

    def check(self) -> None:
        """A known role, a plain label, a period that is not empty."""
        if self.role not in tuple(Role):
            raise Violation("bad-member", "a member has an unknown role")
        if not LABEL.fullmatch(self.label):
            raise Violation("bad-label", "a label is not lower-case letters, digits, dashes")
        if self.not_before >= self.not_after:
            raise Violation("bad-member", "a membership ends before it begins")

    def is_active(self, now: float) -> bool:
        """Whether the key counts at ``now`` (seconds since the epoch)."""
        if self.revoked and self.revoked <= now:
            return False
        return self.not_before <= now < self.not_after


@dataclass(frozen=True, slots=True)
class FederationRoster(Message, type_id=71):
    """All members of a federation, revoked and expired ones included. ``serial`` starts at 1.

    ``issued`` is in seconds since the epoch. Sealed by the authority.
    """

    SEAL: ClassVar[str] = "federation roster"

    federation: Annotated[str, Text(32)]
    serial: U32
    issued: U64
    members: Annotated[tuple[Member, ...], ListOf(Nested(Member), 2 * MAX_SITES)]

    def check(self) -> None:
        """Plain name; no key twice; of each role and label at most one key that is not revoked."""
        if not LABEL.fullmatch(self.federation):
            raise Violation("bad-label", "a federation's name is a plain lower-case name")
        if self.serial < 1:
            raise Violation("bad-federation", "serials start at 1")
        if len({m.public_key for m in self.members}) != len(self.members):
            raise Violation("bad-federation", "a key is listed twice")
        current = [(m.role, m.label) for m in self.members if not m.revoked]
        if len(set(current)) != len(current):
            raise Violation("bad-federation", "two current members share a role and a label")

    def member(self, public_key: bytes) -> Member | None:
        """The entry of a key (32 raw bytes), None when it is not listed."""
        return next((m for m in self.members if m.public_key == public_key), None)

    def active(self, role: Role, now: float) -> tuple[Member, ...]:
        """The members of ``role`` whose keys count at ``now``, by label."""
        found = (m for m in self.members if m.role == role and m.is_active(now))
        return tuple(sorted(found, key=lambda m: m.label))
