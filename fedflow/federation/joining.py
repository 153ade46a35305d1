"""Joining a federation: a list of members, and the authority's fingerprint a person compared.

What is written is what the person agreed to and nothing else: the authority and the coordinators in
``policy.toml``, the exchange in ``site.toml``, the list beside them. Every step may be done again,
so a join that was interrupted is repeated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from fedflow.coordinator.settings import load_coordinator
from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import Refusal, Violation
from fedflow.exchange import open_exchange, resolve_url
from fedflow.federation.keys import check_fingerprint
from fedflow.federation.members import (
    RosterMemory,
    published,
    read_file,
    read_roster,
    read_unpinned,
)
from fedflow.federation.toml_edit import set_values
from fedflow.settings_file import load_toml
from fedflow.site.config import SiteSettings, lock_site
from fedflow.site.new_key import activate, load_key, next_key
from fedflow.site.policy import load_policy
from fedflow.wire.membership import FederationRoster, Member, Role


@dataclass(frozen=True)
class Joined:
    """What a join ended with. ``new_key`` says that a key asked for has become the site's key."""

    roster: FederationRoster
    authority: PublicKey
    member: Member
    new_key: bool = False

    @property
    def coordinators(self) -> tuple[Member, ...]:
        """The coordinators that count now."""
        return self.roster.active(Role.COORDINATOR, time.time())


def join_site(
    path: Path, *, roster: Path | None = None, exchange: str | None = None, fingerprint: str = ""
) -> Joined:
    """Join the site in ``path`` by a roster file or by the newest list in ``exchange``.

    ``fingerprint`` is the authority's, compared by a person; it may be left out only when that
    authority is pinned already. A new key that the list names becomes the site's key, for which
    the site's agent must not be running. Refusals: ``fingerprint-mismatch``,
    ``other-authority``, ``not-listed``, ``revoked``, ``expired``, and those of
    :meth:`RosterMemory.learn`.
    """
    settings = load_toml(path / "site.toml", SiteSettings)
    policy = load_policy(path / "policy.toml")
    own, new = load_key(path), next_key(path)
    keys = [own] if new is None else [new, own]
    url = settings.exchange if exchange is None else exchange
    data, authority = _roster(
        path, keys, roster, url if roster is None else "", policy.trust.authority, fingerprint
    )
    found = read_roster(data, authority)
    key = next((k for k in keys if (m := found.member(k.public.raw)) and not m.revoked), own)
    member = _listed(found, key.public, Role.SITE, settings.label)
    RosterMemory(path / "roster", authority).learn(data)
    trusted = [c for c in policy.trust.coordinators if not _revoked(found, c)]
    trusted += [
        m.public_key.hex()
        for m in found.active(Role.COORDINATOR, time.time())
        if m.public_key.hex() not in trusted
    ]
    set_values(
        path / "policy.toml", "trust", {"authority": authority.hex(), "coordinators": trusted}
    )
    if exchange is not None:
        set_values(path / "site.toml", "", {"exchange": exchange})
    if key is not new:
        return Joined(found, authority, member)
    lock = lock_site(path)
    try:
        activate(path)
    finally:
        lock.close()
    return Joined(found, authority, member, new_key=True)


def join_coordinator(
    path: Path, *, roster: Path | None = None, exchange: str | None = None, fingerprint: str = ""
) -> Joined:
    """The same for a coordinator: pins the authority and sets the exchange in coordinator.toml."""
    settings, identity = load_coordinator(path)
    url = settings.exchange if exchange is None else exchange
    data, authority = _roster(
        path, [identity], roster, url if roster is None else "", settings.authority, fingerprint
    )
    found = read_roster(data, authority)
    member = _listed(found, identity.public, Role.COORDINATOR, "")
    RosterMemory(path / "roster", authority).learn(data)
    values = {"authority": authority.hex()} | ({"exchange": exchange} if exchange else {})
    set_values(path / "coordinator.toml", "", values)
    return Joined(found, authority, member)


def _roster(
    folder: Path,
    keys: list[Identity],
    file: Path | None,
    url: str,
    pinned: str,
    fingerprint: str,
) -> tuple[bytes, PublicKey]:
    """A sealed list by the authority that was compared or pinned, and that authority's key."""
    if not fingerprint and not pinned:
        raise Refusal(
            "no-fingerprint",
            "compare the authority's fingerprint by phone and give it with --authority-fingerprint:"
            " it is all that tells this federation from one that somebody else made up",
        )
    if file is not None:
        candidates = [read_file(file)]
    elif url:
        candidates = _published(folder, keys, url)
    else:
        raise Refusal("no-roster", "name a roster file or an exchange to read the list from")
    wrong: Refusal | Violation | None = None
    for data in candidates:
        try:
            _, authority = read_unpinned(data)
            if fingerprint:
                field = "--authority-fingerprint"
                check_fingerprint(fingerprint, authority, field=field, whose="the list's authority")
            if pinned and authority.hex() != pinned:
                raise Refusal(
                    "other-authority",
                    "another authority is pinned here already:"
                    f" {PublicKey.from_hex(pinned).fingerprint()}, and the list is by"
                    f" {authority.fingerprint()}. A folder belongs to one federation; if that has"
                    " changed for good, remove the old key from its settings yourself",
                )
        except (Refusal, Violation) as error:
            wrong = wrong or error
            continue
        return data, authority
    if wrong is not None:
        raise wrong
    raise Refusal("no-roster", f"there is no list of members at {url} yet")


def _published(folder: Path, keys: list[Identity], url: str) -> list[bytes]:
    """The lists in an exchange, newest first. A relay may know a new key only, or the old one."""
    refused: Refusal | None = None
    for identity in keys:
        try:
            exchange = open_exchange(resolve_url(url, folder), identity)
            return list(published(exchange))
        except Refusal as error:
            refused = error
        except OSError as error:
            raise Refusal(
                "exchange-unavailable", f"the exchange {url} cannot be reached now: {error}"
            ) from None
    assert refused is not None
    raise refused


def _listed(roster: FederationRoster, key: PublicKey, role: Role, label: str) -> Member:
    """The entry of a party's own key, if it counts; a Refusal that says what to do otherwise."""
    member, now = roster.member(key.raw), time.time()
    if member is None or member.role != role:
        raise Refusal(
            "not-listed",
            f"this {role.word}'s key, {key.fingerprint()}, is not in the list with serial"
            f" {roster.serial} of {roster.federation}: send the authority a request, and ask for"
            " the list again once it has approved it",
        )
    if label and member.label != label:
        raise Refusal(
            "other-label",
            f"the authority lists this key as {member.label}, the site calls itself {label}: ask"
            " it to approve a request with the right label",
        )
    if member.revoked:
        raise Refusal("revoked", f"the authority has revoked this key, {key.fingerprint()}")
    if member.not_after <= now:
        raise Refusal("expired", "this membership has ended; ask the authority to renew it")
    if member.not_before > now:
        raise Refusal("not-yet", "this membership has not begun yet: check the clock")
    return member


def _revoked(roster: FederationRoster, key: str) -> bool:
    member = roster.member(bytes.fromhex(key))
    return member is not None and member.revoked != 0
