"""``fedflow federation``: name who belongs to a federation, with a key best kept offline."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Refusal, Violation
from fedflow.federation.authority import (
    DAY,
    WARN_SECONDS,
    AuthorityFolder,
    changing,
    init_authority,
    open_authority,
)
from fedflow.federation.changes import read_request, wanted_key, wanted_role
from fedflow.federation.keys import check_fingerprint, read_fingerprint
from fedflow.federation.members import read_file
from fedflow.wire.membership import JoinRequest, Member, Role, RotationRequest

app = typer.Typer(
    help="Name who belongs to a federation, by keys and fingerprints.", no_args_is_help=True
)
Folder = Annotated[Path, typer.Argument(help="The authority's folder.")]
Label = Annotated[str, typer.Argument(help="The member's label.")]
RoleOption = Annotated[str, typer.Option("--role", help="site, coordinator or auditor.")]
Days = Annotated[int, typer.Option(min=1, max=3650, help="How long the membership lasts.")]


@app.command(
    epilog="Example: fedflow federation init ./authority --name berlin-trial --exchange /mnt/fed"
)
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The federation's name.")],
    exchange: Annotated[
        str,
        typer.Option(help="Where members find the list: a folder, an fsspec URL, a relay's URL."),
    ],
) -> None:
    """Make an authority: a key that signs who is a member. FEDFLOW_KEY_PASSPHRASE protects it."""
    identity = init_authority(folder, name=name, exchange=exchange)
    console = Console()
    console.print(f"federation [bold]{name}[/] is ready in {folder}")
    console.print(f"  public key   {identity.public.hex()}", soft_wrap=True)
    console.print(f"  fingerprint  {identity.public.fingerprint()}   (read it aloud to everyone)")
    console.print(f"next: `fedflow federation approve {folder} REQUEST`", soft_wrap=True)


@app.command(
    epilog='Example: fedflow federation approve ./authority berlin.request --fingerprint "1f2e …"'
)
def approve(
    folder: Folder,
    requests: Annotated[list[Path], typer.Argument(help="Request files, as they were sent.")],
    days: Days = 365,
    fingerprint: Annotated[
        list[str] | None,
        typer.Option(help="What the party read out; once for each request. Asked for if left out."),
    ] = None,
) -> None:
    """List those who ask, all or none, once their fingerprints have been compared."""
    console = Console()
    given = {read_fingerprint(text, field="--fingerprint") for text in fingerprint or ()}
    with changing(folder) as authority:
        read = []
        for path in requests:
            data = read_file(path)
            try:
                request = read_request(data)
            except Violation as error:
                raise InputError(f"not a sound request: {error.message}", where=str(path)) from None
            read.append(data)
            key, role = wanted_key(request), wanted_role(request)
            console.print(f"[bold]{role.word} {request.label}[/] asks {_what(request)} ({path})")
            console.print(f"  fingerprint  {key.fingerprint()}")
            console.print(f"  made         {_day(request.made)}, by fedflow {request.version}")
            if not fingerprint:
                _ask(key, request.label)
            elif key.fingerprint().replace(" ", "") not in given:
                field, whose = "--fingerprint", f"{role.word} {request.label}"
                check_fingerprint(fingerprint[0], key, field=field, whose=whose)
                raise Refusal("fingerprint-mismatch", f"no fingerprint was given for {whose}")
        authority.approve(read, days)
        console.print(
            f"approved for {days} days; the list has serial {authority.roster.serial}:"
            f" {folder / 'roster'}",
            soft_wrap=True,
        )
        _publish(authority, console)


def _what(request: JoinRequest | RotationRequest) -> str:
    if isinstance(request, JoinRequest):
        return "to join"
    return f"to replace its key {PublicKey(request.old_key).fingerprint()}"


def _ask(key: PublicKey, label: str) -> None:
    if not sys.stdin.isatty():
        raise Refusal(
            "no-fingerprint",
            f"call {label}, have its fingerprint read to you, and give it with --fingerprint",
        )
    heard = typer.prompt(f"The fingerprint that {label} reads to you, by phone")
    check_fingerprint(heard, key, field="fingerprint", whose=label)


@app.command(epilog="Example: fedflow federation revoke ./authority berlin --role site")
def revoke(folder: Folder, label: Label, role: RoleOption = "site") -> None:
    """From now on a member's key counts no more, for good. Publishes the new list."""
    with changing(folder) as authority:
        authority.revoke(_role(role), label)
        console = Console()
        console.print(
            f"{role} {label} is revoked by the list with serial {authority.roster.serial}"
        )
        _publish(authority, console)


@app.command(epilog="Example: fedflow federation renew ./authority berlin --role site --days 365")
def renew(folder: Folder, label: Label, role: RoleOption = "site", days: Days = 365) -> None:
    """Let a member's key count until so many days from now. Publishes the new list."""
    with changing(folder) as authority:
        authority.renew(_role(role), label, days)
        console = Console()
        console.print(f"{role} {label} counts for {days} days from now")
        _publish(authority, console)


@app.command(epilog="Example: fedflow federation publish ./authority")
def publish(folder: Folder) -> None:
    """Put the newest list into the exchange, as after an exchange that was away."""
    with changing(folder) as authority:
        if not _publish(authority, Console()):
            raise Refusal("exchange-unavailable", "the exchange cannot be reached now; try again")


def _publish(authority: AuthorityFolder, console: Console) -> bool:
    try:
        serial = authority.publish()
    except OSError as error:
        console.print(
            f"[yellow]not published[/], as the exchange cannot be reached ({error}): send the file"
            f" to the members, and later `fedflow federation publish {authority.path}`",
            soft_wrap=True,
        )
        return False
    console.print(f"published as serial {serial} in {authority.settings.exchange}", soft_wrap=True)
    _warn(authority.members, console)
    return True


@app.command(epilog="Example: fedflow federation show ./authority")
def show(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts for machines.")] = False,
) -> None:
    """List every key: whose it is, until when it counts, and whether it does."""
    authority = open_authority(folder)
    roster, now = authority.roster, time.time()
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "federation": roster.federation,
                    "serial": roster.serial,
                    "issued": roster.issued,
                    "authority": authority.identity.public.hex(),
                    "fingerprint": authority.identity.public.fingerprint(),
                    "exchange": authority.settings.exchange,
                    "members": [_facts(member, now) for member in roster.members],
                }
            )
        )
        return
    console = Console()
    console.print(f"federation [bold]{roster.federation}[/], list {roster.serial}")
    console.print(f"authority {authority.identity.public.fingerprint()}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("label", "role", "fingerprint", "until", "state"):
        whole = heading in ("fingerprint", "until")  # a fingerprint is compared whole or not at all
        table.add_column(heading, no_wrap=whole, overflow="fold")
    for member in sorted(roster.members, key=lambda m: (m.role, m.label, m.revoked or 1 << 62)):
        facts = _facts(member, now)
        table.add_row(
            *(str(facts[name]) for name in ("label", "role", "fingerprint")),
            _day(member.not_after),
            str(facts["state"]),
        )
    console.print(table if roster.members else "nobody has joined yet")
    _warn(roster.members, console)


def _facts(member: Member, now: float) -> dict[str, object]:
    return {
        "label": member.label,
        "role": Role(member.role).word,
        "public_key": member.public_key.hex(),
        "fingerprint": PublicKey(member.public_key).fingerprint(),
        "not_before": member.not_before,
        "not_after": member.not_after,
        "revoked": member.revoked,
        "previous": member.previous.hex() if any(member.previous) else None,
        "state": _state(member, now),
    }


def _state(member: Member, now: float) -> str:
    if member.revoked:
        return f"revoked {_day(member.revoked)}"
    if now >= member.not_after:
        return "expired"
    if now < member.not_before:
        return "not yet"
    left = int((member.not_after - now) / DAY)
    return "active" if member.not_after - now > WARN_SECONDS else f"active, ends in {left} days"


def _warn(members: tuple[Member, ...], console: Console) -> None:
    now = time.time()
    for member in members:
        if not member.revoked and member.not_after - now <= WARN_SECONDS:
            ends = "has ended" if member.not_after <= now else f"ends {_day(member.not_after)}"
            console.print(
                f"[yellow]the membership of {Role(member.role).word} {member.label} {ends}[/]:"
                " `fedflow federation renew`",
                soft_wrap=True,
            )


def _role(text: str) -> Role:
    try:
        return Role[text.upper()]
    except KeyError:
        raise InputError(
            f"{text!r} is not a role", field="--role", allowed="site, coordinator, auditor"
        ) from None


def _day(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return "at no date"
