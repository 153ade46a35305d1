"""What an authority may do to its list of members. Pure: members in, members out, or a refusal.

Nothing is ever taken out of the list. A key that was revoked or has expired stays, so that everyone
who has the list knows it for good, and a request that is sent twice finds its key already there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Refusal, Violation
from fedflow.wire.membership import NO_KEY, JoinRequest, Member, Role, RotationRequest
from fedflow.wire.sealed import peek, unseal

Members = tuple[Member, ...]
Request = JoinRequest | RotationRequest

#: A new key counts from a little before now: clocks of others may be behind (seconds).
CLOCK_SLACK = 600


def read_request(data: bytes) -> Request:
    """The request in ``data``, if the keys it names signed it; Violation otherwise."""
    try:
        key = peek(JoinRequest, data).public_key
    except Violation:
        rotation = peek(RotationRequest, data)
        return unseal(RotationRequest, data, PublicKey(rotation.old_key))
    return unseal(JoinRequest, data, PublicKey(key))


def wanted_key(request: Request) -> PublicKey:
    """The key that the request asks for, whose fingerprint is to be compared."""
    return PublicKey(request.public_key if isinstance(request, JoinRequest) else request.new_key)


def wanted_role(request: Request) -> Role:
    """The role that the request asks for. Only sites replace keys by request."""
    return Role(request.role) if isinstance(request, JoinRequest) else Role.SITE


def approved(members: Members, request: Request, now: int, until: int) -> Members:
    """The members with the one who asks. Refusal with what stands against it."""
    if until <= now:
        raise Refusal("bad-period", "a membership cannot end before it begins")
    key, role = wanted_key(request), wanted_role(request)
    _refuse_known(members, key)
    if isinstance(request, JoinRequest):
        held = current(members, role, request.label)
        if held is not None:
            raise Refusal(
                "label-taken",
                f"{role.word} {request.label} is a member with the key"
                f" {PublicKey(held.public_key).fingerprint()}. If this is the same {role.word} with"
                " a new key because it lost the old one, revoke that first; otherwise it needs"
                " another label",
            )
        new = Member(
            role, request.label, key.raw, now - CLOCK_SLACK, until, revoked=0, previous=NO_KEY
        )
        return (*members, new)
    old = current(members, role, request.label)
    if old is None or old.public_key != request.old_key:
        raise Refusal(
            "not-a-member",
            f"the key that asks to be replaced is not the one {request.label} has now: only a"
            " member's own key can name the next. If the key was lost or stolen, revoke it and let"
            " the site ask anew",
        )
    ended = replace(old, revoked=now)
    new = Member(
        role, request.label, key.raw, now - CLOCK_SLACK, until, revoked=0, previous=old.public_key
    )
    return (*(ended if m is old else m for m in members), new)


def revoked(members: Members, role: Role, label: str, now: int) -> Members:
    """The members with the current key of ``label`` revoked."""
    held = _need(members, role, label)
    return tuple(replace(m, revoked=now) if m is held else m for m in members)


def renewed(members: Members, role: Role, label: str, until: int) -> Members:
    """The members with the current key of ``label`` valid until ``until``."""
    held = _need(members, role, label)
    if until <= held.not_before:
        raise Refusal("bad-period", "a membership cannot end before it begins")
    return tuple(replace(m, not_after=until) if m is held else m for m in members)


def current(members: Sequence[Member], role: Role, label: str) -> Member | None:
    """The one key of a role and label that is not revoked; None without one."""
    return next((m for m in members if not m.revoked and (m.role, m.label) == (role, label)), None)


def _need(members: Members, role: Role, label: str) -> Member:
    held = current(members, role, label)
    if held is None:
        known = ", ".join(sorted({m.label for m in members if m.role == role and not m.revoked}))
        raise Refusal(
            "not-a-member",
            f"there is no {role.word} {label} to change (members: {known or 'none'})",
        )
    return held


def _refuse_known(members: Members, key: PublicKey) -> None:
    known = next((m for m in members if m.public_key == key.raw), None)
    if known is None:
        return
    if known.revoked:
        raise Refusal(
            "key-was-revoked",
            f"this key of {known.label} was revoked and never counts again: the request may be an"
            " old one. The party makes a new key in a new folder and asks with that",
        )
    raise Refusal(
        "already-a-member",
        f"this key is listed already, as {Role(known.role).word} {known.label}. To let it count"
        " longer, use `fedflow federation renew`",
    )
