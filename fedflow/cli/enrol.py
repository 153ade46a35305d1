"""``fedflow site request``, ``join`` and ``rotate-key``: how a site becomes and stays a member."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import InputError
from fedflow.federation.joining import Joined, join_site
from fedflow.federation.requests import join_request, rotation_request
from fedflow.settings_file import load_toml
from fedflow.site.config import SiteFolder, SiteSettings, lock_site, open_site
from fedflow.site.new_key import activate, load_key, make_next_key
from fedflow.wire.membership import Role

Site = Annotated[Path, typer.Argument(help="The site's folder.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="The file to write; by default LABEL.request.")
]
RosterFile = Annotated[
    Path | None, typer.Argument(help="The list of members, as the authority sent it.")
]
Exchange = Annotated[
    str | None,
    typer.Option(help="The federation's exchange, to be used from now on. Folders: from FOLDER."),
]
Fingerprint = Annotated[
    str, typer.Option("--authority-fingerprint", help="What the authority read to you, by phone.")
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to ``fedflow site``."""
    app.command(epilog="Example: fedflow site request ./site-berlin -o berlin.request")(request)
    app.command(
        epilog='Example: fedflow site join ./site-berlin roster --authority-fingerprint "1f2e …"'
    )(join)
    app.command("rotate-key", epilog="Example: fedflow site rotate-key ./site-berlin")(rotate_key)


def request(folder: Site, output: Output = None) -> None:
    """Write a request to join, signed by the site's key. It holds no secret."""
    settings, identity = _load(folder)
    path = write_request(output, settings.label, join_request(identity, Role.SITE, settings.label))
    tell_request(path, settings.label, identity.public)


def join(
    folder: Site,
    roster: RosterFile = None,
    exchange: Exchange = None,
    authority_fingerprint: Fingerprint = "",
) -> None:
    """Join with a list the authority signed: pins authority and coordinators, sets the exchange.

    Only [trust] in policy.toml is changed. A new key that the list names becomes the site's key.
    """
    joined = join_site(folder, roster=roster, exchange=exchange, fingerprint=authority_fingerprint)
    tell_joined(joined, f"site {joined.member.label}")
    if joined.new_key:
        _tell_active(folder)
    console = Console()
    if not load_toml(folder / "site.toml", SiteSettings).exchange:
        console.print("next: `fedflow site join` with --exchange, to say where the exchange is")
    else:
        console.print(f"next: edit {folder / 'policy.toml'}, then `fedflow site start {folder}`")


def rotate_key(
    folder: Site,
    output: Output = None,
    activate_now: Annotated[
        bool,
        typer.Option(
            "--activate", help="Make the new key the site's key now; the authority has approved."
        ),
    ] = False,
) -> None:
    """Ask the authority to list a new key in place of this site's. The ledger goes on under it.

    For a key that nobody else has. One that was lost or stolen is revoked by the authority instead.
    """
    if activate_now:
        _activate(folder)
        return
    site = open_site(folder)
    new, label = make_next_key(folder), site.settings.label
    path = write_request(output, label, rotation_request(site.identity, new, label))
    tell_request(path, label, new.public)
    console = Console()
    console.print("the site goes on with its old key until you join with the new list:")
    console.print(
        f"  stop the agent, then `fedflow site join {folder} --exchange …`", soft_wrap=True
    )


def _activate(folder: Path) -> None:
    site = open_site(folder)
    members = site.members()
    known = None if members is None else members.newest()
    new = make_next_key(folder) if (folder / "identity.next.pem").exists() else None
    if known is not None and new is not None:
        member = known.member(new.public.raw)
        if member is None or member.revoked or member.previous != site.identity.public.raw:
            raise InputError(
                "the newest list of members seen here does not name the new key: join with the list"
                " in which the authority has approved it",
                where=str(folder),
            )
    lock = lock_site(folder)
    try:
        activate(folder)
    finally:
        lock.close()
    _tell_active(folder)


def _tell_active(folder: Path) -> None:
    site: SiteFolder = open_site(folder)
    Console().print(
        f"the site's key is now {site.identity.public.fingerprint()}; its ledger goes on"
    )


def _load(folder: Path) -> tuple[SiteSettings, Identity]:
    if not (folder / "site.toml").is_file():
        raise InputError(
            "is not a site folder; make one with `fedflow site init`", where=str(folder)
        )
    return load_toml(folder / "site.toml", SiteSettings), load_key(folder)


def write_request(output: Path | None, label: str, data: bytes) -> Path:
    """Write a request, never over another file; its path."""
    path = output or Path(f"{label}.request")
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise InputError(
            "a file is here already; name another with --output", where=str(path)
        ) from None
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from None
    return path


def tell_request(path: Path, label: str, key: PublicKey) -> None:
    """Say what was written, and what to read out."""
    console = Console()
    console.print(f"wrote {path}: send it to the authority, by any way", soft_wrap=True)
    console.print(f"  fingerprint  {key.fingerprint()}   (of {label}; read it out by phone)")


def tell_joined(joined: Joined, who: str) -> None:
    """Say whom this party trusts now, and for how long it is a member."""
    console, roster = Console(), joined.roster
    until = datetime.fromtimestamp(joined.member.not_after, UTC).strftime("%Y-%m-%d")
    console.print(f"{who} is in [bold]{roster.federation}[/] until {until} (list {roster.serial})")
    console.print(f"  authority    {joined.authority.fingerprint()}")
    for member in joined.coordinators:
        fingerprint = PublicKey(member.public_key).fingerprint()
        console.print(f"  coordinator  {fingerprint}   {member.label}")
