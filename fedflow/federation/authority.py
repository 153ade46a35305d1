"""The authority's folder: its key, and the list of members that it signs.

::

    identity.pem      the key that names who belongs to the federation; best kept offline
    federation.toml   the federation's name and its exchange
    roster            the newest sealed list of members
    requests/         what was approved, as it came
    jobs/             manifests it signed, and the keys an auditor pins for each
    .lock             held while something changes

Every change is one new list with the next serial, durable here before it is published.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from fedflow.crypto.identity import Identity
from fedflow.errors import InputError, Refusal, Violation
from fedflow.exchange import Exchange, layout, open_exchange, resolve_url
from fedflow.federation.changes import Members, approved, read_request, renewed, revoked, wanted_key
from fedflow.federation.keys import passphrase
from fedflow.federation.members import published, read_file, read_roster
from fedflow.settings_file import load_toml, toml_string
from fedflow.site.durable import private_folder, write_durably
from fedflow.wire.membership import FederationRoster, Role
from fedflow.wire.sealed import seal

DAY = 86_400
#: From when on a membership that ends is worth a warning (seconds).
WARN_SECONDS = 30 * DAY
#: Names in a row that others may have taken before publishing gives up.
MOST_TAKEN = 100

_TEMPLATE = """\
# A federation's authority. Relative paths are relative to this folder.
name = {name}            # lower-case letters, digits, dashes
exchange = {exchange}    # where members find the list: a folder, an fsspec URL, or a relay
"""


class FederationSettings(BaseModel):
    """``federation.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="a plain name")
    exchange: str = Field(min_length=1, description="a folder, an fsspec URL, or a relay's URL")


@dataclass
class AuthorityFolder:
    """An opened authority. Methods that change the list sign it and make it durable at once."""

    path: Path
    settings: FederationSettings
    identity: Identity
    roster: FederationRoster

    @property
    def members(self) -> Members:
        """Every key ever listed."""
        return self.roster.members

    def exchange(self) -> Exchange:
        """The federation's exchange, written to as the authority."""
        return open_exchange(resolve_url(self.settings.exchange, self.path), self.identity)

    def sealed(self) -> bytes:
        """The list as it is sent to members."""
        return read_file(self.path / "roster")

    def approve(self, requests: Sequence[bytes], days: int) -> None:
        """List those who ask, all or none of them, for ``days`` days from now."""
        now, members = _now(), self.members
        for data in requests:
            members = approved(members, read_request(data), now, now + days * DAY)
        self.sign(members)
        private_folder(self.path / "requests")
        for data in requests:
            request = read_request(data)
            name = f"{self.roster.serial:06d}-{request.label}-{wanted_key(request).hex()[:8]}"
            write_durably(self.path / "requests" / name, data)

    def revoke(self, role: Role, label: str) -> None:
        """From now on the current key of this member counts no more, for good."""
        self.sign(revoked(self.members, role, label, _now()))

    def renew(self, role: Role, label: str, days: int) -> None:
        """The current key of this member counts until ``days`` days from now."""
        self.sign(renewed(self.members, role, label, _now() + days * DAY))

    def sign(self, members: Members) -> None:
        """Sign ``members`` as the next list, durably."""
        roster = replace(
            self.roster,
            serial=self.roster.serial + 1,
            issued=max(_now(), self.roster.issued),
            members=members,
        )
        try:
            FederationRoster.decode(roster.encode())
        except Violation as error:  # others would refuse it: nothing is signed
            raise Refusal(error.code, error.message) from None
        write_durably(self.path / "roster", seal(self.identity, roster))
        self.roster = roster

    def publish(self) -> int:
        """Put the list into the exchange; its serial, which is higher where names were taken.

        OSError while the exchange is down; Refusal ``authority-behind`` when the exchange has a
        later list by this key, or another one of this serial: then this folder is an older copy.
        """
        exchange = self.exchange()
        self._check_newest(exchange)
        for _ in range(MOST_TAKEN):
            try:
                exchange.put(layout.federation_roster(self.roster.serial), self.sealed())
                return self.roster.serial
            except Violation as error:
                if error.code != "already-put":
                    raise
                self._check_newest(exchange)
                self.sign(self.members)  # somebody else's bytes have the name: take the next one
        raise Refusal(
            "exchange-flooded",
            f"{MOST_TAKEN} names for lists of members are taken by others in the exchange; remove"
            f" what is under {layout.federation_rosters()}/ and publish again",
        )

    def _check_newest(self, exchange: Exchange) -> None:
        for data in published(exchange, above=self.roster.serial - 1):
            with contextlib.suppress(Violation):
                found = read_roster(data, self.identity.public)
                if found != self.roster:
                    raise Refusal(
                        "authority-behind",
                        f"the exchange has a list with serial {found.serial} by this key that this"
                        f" folder does not know (its own is {self.roster.serial}): an older copy of"
                        f" {self.path} was put back. Restore the newest one before you change"
                        " anything",
                    )


def init_authority(path: Path, *, name: str, exchange: str) -> Identity:
    """Make an authority's folder: key, settings, an empty list. Refuses a folder in use."""
    if (path / "federation.toml").exists() or (path / "identity.pem").exists():
        raise Refusal("already-there", f"{path} already holds a key; choose another folder")
    private_folder(path)
    path.chmod(0o700)
    text = _TEMPLATE.format(name=toml_string(name), exchange=toml_string(exchange))
    (path / "federation.toml").write_text(text)
    try:
        load_toml(path / "federation.toml", FederationSettings)
    except InputError:
        (path / "federation.toml").unlink()
        raise
    identity = Identity.generate()
    first = FederationRoster(name, 1, _now(), (), identity.public.raw)
    write_durably(path / "roster", seal(identity, first))
    identity.save(path / "identity.pem", passphrase())
    return identity


def open_authority(path: Path) -> AuthorityFolder:
    """Open an authority's folder; InputError or Violation naming what is wrong with it."""
    if not (path / "federation.toml").is_file():
        raise InputError(
            "is not an authority's folder (it has no federation.toml); make one with `fedflow"
            " federation init`",
            where=str(path),
        )
    settings = load_toml(path / "federation.toml", FederationSettings)
    identity = Identity.load(path / "identity.pem", passphrase())
    roster = read_roster(read_file(path / "roster"), identity.public)
    if roster.federation != settings.name:
        raise InputError(
            f"the list of members is of {roster.federation}; a federation keeps its name",
            where=str(path / "federation.toml"),
            field="name",
        )
    return AuthorityFolder(path, settings, identity, roster)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[AuthorityFolder]:
    """The authority's folder, held so that no other command changes it meanwhile."""
    if not path.is_dir():
        open_authority(path)
    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield open_authority(path)
    finally:
        os.close(handle)


def _now() -> int:
    return int(time.time())
