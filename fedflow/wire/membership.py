"""Who belongs to a federation: one numbered list, signed by the authority, readable by everybody.

It is the only credential there is. A site that is in it, unrevoked and not expired, may write to
the relay and may be put into manifests; a higher serial replaces a lower one, for everybody. Who
wants to be in it asks with a message signed by its own key; no secret is ever shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Violation
from fedflow.wire.codec import U32, U64, Bytes32, ListOf, Message, Nested, Signature, Text, UInt
from fedflow.wire.messages import LABEL, MAX_SITES

#: In place of a key: there is none.
NO_KEY = bytes(32)


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
    """One key of a federation. Times are seconds since the epoch; ``revoked`` is 0 for not.

    ``previous`` is the key this one took over from, whose ledger it continues: zeros for none.
    """

    role: Annotated[int, UInt(1, most=3)]
    label: Annotated[str, Text(32)]
    public_key: Bytes32
    not_before: U64
    not_after: U64
    revoked: U64
    previous: Bytes32 = NO_KEY

    def check(self) -> None:
        """A known role, a plain label, a period that is not empty, a predecessor not itself."""
        _check_name(self.role, self.label)
        if self.public_key in (NO_KEY, self.previous):
            raise Violation("bad-member", "a member has no key, or takes over from itself")
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

    ``issued`` is in seconds since the epoch, ``authority`` the key that signs it, so that whoever
    was told its fingerprint can check the list alone. Sealed by the authority.
    """

    SEAL: ClassVar[str] = "federation roster"

    federation: Annotated[str, Text(32)]
    serial: U32
    issued: U64
    members: Annotated[tuple[Member, ...], ListOf(Nested(Member), 2 * MAX_SITES)]
    authority: Bytes32 = NO_KEY

    def check(self) -> None:
        """Plain name; no key twice; of each role and label at most one key that is not revoked.

        A key takes over from one that is listed, revoked, and of the same role and label; none has
        two successors.
        """
        if not LABEL.fullmatch(self.federation):
            raise Violation("bad-label", "a federation's name is a plain lower-case name")
        if self.serial < 1:
            raise Violation("bad-federation", "serials start at 1")
        if len({m.public_key for m in self.members}) != len(self.members):
            raise Violation("bad-federation", "a key is listed twice")
        current = [(m.role, m.label) for m in self.members if not m.revoked]
        if len(set(current)) != len(current):
            raise Violation("bad-federation", "two current members share a role and a label")
        listed = {m.public_key: m for m in self.members}
        heirs = [m for m in self.members if m.previous != NO_KEY]
        if len({m.previous for m in heirs}) != len(heirs):
            raise Violation("bad-federation", "two keys take over from the same one")
        for heir in heirs:
            old = listed.get(heir.previous)
            if old is None or not old.revoked or (old.role, old.label) != (heir.role, heir.label):
                raise Violation("bad-federation", "a key takes over from one it cannot follow")

    def member(self, public_key: bytes) -> Member | None:
        """The entry of a key (32 raw bytes), None when it is not listed."""
        return next((m for m in self.members if m.public_key == public_key), None)

    def earlier_keys(self, public_key: bytes) -> tuple[bytes, ...]:
        """The keys whose ledger ``public_key`` continues, newest first."""
        listed = {m.public_key: m.previous for m in self.members}
        found: list[bytes] = []
        while (public_key := listed.get(public_key, NO_KEY)) != NO_KEY and public_key not in found:
            found.append(public_key)
        return tuple(found)

    def active(self, role: Role, now: float) -> tuple[Member, ...]:
        """The members of ``role`` whose keys count at ``now``, by label."""
        found = (m for m in self.members if m.role == role and m.is_active(now))
        return tuple(sorted(found, key=lambda m: m.label))


@dataclass(frozen=True, slots=True)
class JoinRequest(Message, type_id=72):
    """Somebody asks to be a member. Sealed by the key it names: whoever asks holds it.

    ``made`` is in seconds since the epoch, ``version`` that of fedflow there, for the authority to
    look at. Nothing in it is proof of who it is: that is what comparing the fingerprint is for.
    """

    SEAL: ClassVar[str] = "join request"

    role: Annotated[int, UInt(1, most=3)]
    label: Annotated[str, Text(32)]
    public_key: Bytes32
    made: U64
    version: Annotated[str, Text(32)]

    def check(self) -> None:
        """A known role, a plain label, a key."""
        _check_name(self.role, self.label)
        if self.public_key == NO_KEY:
            raise Violation("bad-member", "a request names no key")


@dataclass(frozen=True, slots=True)
class RotationRequest(Message, type_id=73):
    """A site asks to be known by a new key. Sealed by the old one; ``consent`` is the new one's.

    ``consent`` signs :meth:`agreed` under :data:`CONSENT_LABEL`, so that nobody asks for a key that
    is not their own.
    """

    SEAL: ClassVar[str] = "rotation request"

    label: Annotated[str, Text(32)]
    old_key: Bytes32
    new_key: Bytes32
    made: U64
    version: Annotated[str, Text(32)]
    consent: Signature

    def check(self) -> None:
        """A plain label, two keys that are not the same, and the new one's signature."""
        _check_name(Role.SITE, self.label)
        if NO_KEY in (self.old_key, self.new_key) or self.old_key == self.new_key:
            raise Violation("bad-member", "a rotation needs an old key and another new one")
        body = self.agreed(self.label, self.old_key, self.new_key, self.made)
        PublicKey(self.new_key).verify(CONSENT_LABEL, body, self.consent)

    @staticmethod
    def agreed(label: str, old_key: bytes, new_key: bytes, made: int) -> bytes:
        """What the new key signs."""
        return old_key + new_key + made.to_bytes(8, "big") + label.encode()


#: The label under which a new key agrees to a rotation.
CONSENT_LABEL = "rotation consent"


def _check_name(role: int, label: str) -> None:
    if role not in tuple(Role):
        raise Violation("bad-member", "a member has an unknown role")
    if not LABEL.fullmatch(label):
        raise Violation("bad-label", "a label is not lower-case letters, digits, dashes")
