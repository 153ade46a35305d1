"""Reading lists of members: from a file, from the exchange, and what was remembered of them.

A list is worth what its signature is worth. The exchange may keep a newer one back, and no reader
can tell; but it can never make one, change one, or bring an older one back to whoever has seen a
newer one, because the newest is kept beside the reader's key.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedflow.crypto.identity import PublicKey
from fedflow.errors import FedflowError, InputError, Refusal, Violation
from fedflow.exchange import Exchange, layout
from fedflow.site.durable import write_durably
from fedflow.wire.membership import NO_KEY, FederationRoster
from fedflow.wire.sealed import peek, unseal

#: Names under federation/roster that are looked at: whoever floods it hides a list, no more.
MOST_SEARCHED = 256


def read_roster(data: bytes, authority: PublicKey) -> FederationRoster:
    """The list in ``data``; Violation unless ``authority`` signed it, as its own."""
    roster = unseal(FederationRoster, data, authority)
    if roster.authority != authority.raw:
        raise Violation("bad-federation", "the list names another authority than its signer")
    return roster


def read_unpinned(data: bytes) -> tuple[FederationRoster, PublicKey]:
    """A list signed by the authority it names itself, and that key, for a person to compare."""
    authority = PublicKey(peek(FederationRoster, data).authority)
    return read_roster(data, authority), authority


def read_file(path: Path) -> bytes:
    """A roster or request somebody sent; InputError when it cannot be one."""
    try:
        with open(path, "rb") as file:
            data = file.read(layout.MAX_ROSTER_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(data) > layout.MAX_ROSTER_BYTES:
        raise InputError("is too large for what it should be", where=str(path))
    return data


def published(exchange: Exchange, above: int = 0) -> Iterator[bytes]:
    """What lies in the exchange as lists with serials over ``above``, highest first, unchecked.

    OSError while the exchange is down.
    """
    names = [n for n in exchange.list(layout.federation_rosters()) if n.isascii() and n.isdigit()]
    serials = sorted({int(name) for name in names if len(name) <= 10}, reverse=True)
    for serial in serials[:MOST_SEARCHED]:
        if serial <= above:
            return
        with contextlib.suppress(FedflowError):
            data = exchange.get(layout.federation_roster(serial), layout.MAX_ROSTER_BYTES)
            if data is not None:
                yield data


@dataclass(frozen=True)
class RosterMemory:
    """The newest list of members that was seen, in a file; by serial it only ever goes up."""

    path: Path
    authority: PublicKey

    def data(self) -> bytes | None:
        """The sealed list; None when there was none."""
        return read_file(self.path) if self.path.exists() else None

    def newest(self) -> FederationRoster | None:
        """The list; None when there was none. Refusal ``roster-unusable`` for a file that lies."""
        data = self.data()
        if data is None:
            return None
        try:
            return read_roster(data, self.authority)
        except Violation as error:
            raise Refusal(
                "roster-unusable",
                f"{self.path}, the list of members seen last, is not by the authority that is"
                f" trusted here ({error.message}). Join again with a list from the authority; if"
                " this folder is to belong to another federation, make a new one",
            ) from None

    def learn(self, data: bytes) -> FederationRoster:
        """Remember a list, durably, unless it is the one that is known.

        Violation ``roster-rollback`` for one that is older or takes back what was said,
        ``two-rosters`` for another one of the same serial, ``other-federation`` for one of another
        federation.
        """
        roster = read_roster(data, self.authority)
        with self._alone():
            known = self.newest()
            if known is not None:
                _check_follows(known, roster)
            if roster != known:
                write_durably(self.path, data)
        return roster

    def refresh(self, exchange: Exchange) -> FederationRoster | None:
        """The newest list there is: remembered, or in the exchange, which is then remembered.

        What is in the exchange and does not hold is nothing. OSError while the exchange is down.
        """
        known = self.newest()
        for data in published(exchange, above=0 if known is None else known.serial):
            with contextlib.suppress(Violation):
                return self.learn(data)
        return known

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(
            self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _check_follows(known: FederationRoster, new: FederationRoster) -> None:
    """Violation unless ``new`` can come after ``known``, or is it."""
    if new.federation != known.federation:
        raise Violation(
            "other-federation", f"this is a list of {new.federation}, not of {known.federation}"
        )
    if new.serial < known.serial:
        raise Violation(
            "roster-rollback",
            f"this list has serial {new.serial}; one with serial {known.serial} was seen before,"
            " and who is revoked in that one stays revoked",
        )
    if new.serial == known.serial and new != known:
        raise Violation(
            "two-rosters",
            f"the authority signed two lists with serial {new.serial}: its folder may have been"
            " put back to an older copy. It must sign the list again with a higher serial",
        )
    for member in known.members:
        after = new.member(member.public_key)
        gone = after is None or (member.revoked and not 0 < after.revoked <= member.revoked)
        if gone or (after and after.previous != member.previous):
            raise Violation(
                "roster-rollback",
                f"the list forgets what an earlier one said of {member.label}: the authority's"
                " folder may have been put back to an older copy",
            )


def check_listed(roster: FederationRoster, key: bytes, who: str, made: int) -> None:
    """Refusal ``revoked-key`` when ``key`` was revoked or expired at the time ``made`` (seconds).

    A key the list does not know passes: the list may be older than what lists the key.
    """
    member = roster.member(key)
    if member is None:
        return
    if member.revoked and member.revoked <= made:
        raise Refusal("revoked-key", f"the key of {who} was revoked before the job was made")
    if member.not_after <= made:
        raise Refusal("revoked-key", f"the membership of {who} had ended before the job was made")


def successions(roster: FederationRoster) -> list[tuple[PublicKey, PublicKey]]:
    """(old, new) for every key that took over from another, in the order they were listed."""
    return [
        (PublicKey(m.previous), PublicKey(m.public_key))
        for m in roster.members
        if m.previous != NO_KEY
    ]
