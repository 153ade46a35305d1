"""``fedflow coordinator``: make a coordinator and join a federation with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedflow.cli.enrol import (
    Exchange,
    Fingerprint,
    Output,
    RosterFile,
    tell_joined,
    tell_request,
    write_request,
)
from fedflow.coordinator.settings import init_coordinator, load_coordinator
from fedflow.errors import InputError
from fedflow.federation.joining import join_coordinator
from fedflow.federation.requests import join_request
from fedflow.wire.membership import Role
from fedflow.wire.messages import LABEL

app = typer.Typer(help="Make a coordinator and join a federation with it.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]


@app.command(epilog="Example: fedflow coordinator init ./coordinator")
def init(folder: Folder) -> None:
    """Make a coordinator's folder: a key, and settings to be filled by joining."""
    if (folder / "coordinator.toml").exists():
        raise InputError("holds a coordinator already; choose another folder", where=str(folder))
    identity = init_coordinator(folder)
    console = Console()
    console.print(f"a coordinator is ready in {folder}")
    console.print(f"  fingerprint  {identity.public.fingerprint()}   (compare it by phone)")
    console.print(f"next: `fedflow coordinator request {folder}`")


@app.command(epilog="Example: fedflow coordinator request ./coordinator -o coordinator.request")
def request(
    folder: Folder,
    label: Annotated[str, typer.Option(help="Its name in the federation.")] = "coordinator",
    output: Output = None,
) -> None:
    """Write a request to join, signed by the coordinator's key. It holds no secret."""
    if not LABEL.fullmatch(label):
        raise InputError(
            f"{label!r} is not a label",
            field="--label",
            allowed="up to 32 lower-case letters, digits, dashes",
        )
    _, identity = load_coordinator(folder)
    path = write_request(output, label, join_request(identity, Role.COORDINATOR, label))
    tell_request(path, label, identity.public)


@app.command(
    epilog='Example: fedflow coordinator join ./coordinator roster --authority-fingerprint "1f2e …"'
)
def join(
    folder: Folder,
    roster: RosterFile = None,
    exchange: Exchange = None,
    authority_fingerprint: Fingerprint = "",
) -> None:
    """Join with a list the authority signed: pins the authority, sets the exchange."""
    joined = join_coordinator(
        folder, roster=roster, exchange=exchange, fingerprint=authority_fingerprint
    )
    tell_joined(joined, f"coordinator {joined.member.label}")
