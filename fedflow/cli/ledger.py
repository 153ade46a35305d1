"""``fedflow ledger``: read and check what a site spent, without any server."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Refusal
from fedflow.privacy.entries import FIXED_PLAN, Committed, Entry, Opened, Reserved, Rotated
from fedflow.privacy.export import read_export
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.outlook import outlooks
from fedflow.site.config import open_site

app = typer.Typer(help="Read and verify a site's privacy ledger.", no_args_is_help=True)
Source = Annotated[Path, typer.Argument(help="A site's folder.")]


@app.command(epilog="Example: fedflow ledger show ./site-berlin")
def show(
    folder: Source,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List every entry: what was released, for which job and round, and what it cost."""
    site = open_site(folder)
    ledger = Ledger.open(site.ledger_path, site.identity.public)
    entries = ledger.entries()
    ledger.close()
    title = f"Ledger of {site.settings.label}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("#", "time (UTC)", "entry", "account", "what"):
        justify: Literal["left", "right"] = "right" if heading == "#" else "left"
        table.add_column(heading, justify=justify, no_wrap=heading != "what")
    for entry in entries:
        when = datetime.fromtimestamp(entry.time / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        kind, what = _describe(entry)
        if as_json:
            facts: dict[str, Any] = {
                "seq": entry.seq,
                "time": when,
                "entry": kind,
                "account": entry.account,
            }
            if isinstance(entry, Reserved):
                facts |= {"job": entry.job, "round": entry.round, "renyi_loss": entry.rho}
                facts |= {"release": entry.release_hash.hex(), "event": json.loads(entry.event)}
            typer.echo(json.dumps({**facts, "what": what}))
        table.add_row(str(entry.seq), when[5:], kind, entry.account, what)
    if not as_json:
        console = Console()
        console.print(table if entries else "the ledger is empty: nothing was ever released")
        if entries:
            from fedflow.report.burndown import totals  # plotly: time that others need not wait

            console.print(totals(outlooks(entries)))


def _describe(entry: Entry) -> tuple[str, str]:
    """(kind, sentence) of one entry."""
    if isinstance(entry, Opened):
        what = f"budget ε {entry.epsilon:g} at δ {entry.delta:g} for one {entry.unit}, "
        fixed = entry.accounting == FIXED_PLAN
        return "opened", what + ("whole plans" if fixed else f"Rényi order {entry.order:g}")
    if isinstance(entry, Committed):
        what = f"{entry.job}, whole plan of {entry.planned} releases and {entry.spare} spare: "
        return "committed", what + f"ε {entry.epsilon:.4f} at δ {entry.delta:g}"
    if isinstance(entry, Reserved):
        what = f"{entry.job}, round {entry.round}: "
        return "reserved", what + (f"Rényi loss {entry.rho:.5f}" if entry.rho else "of its plan")
    if isinstance(entry, Rotated):
        return "new key", f"goes on under {PublicKey(entry.new_key).fingerprint()}"
    what = f"in a sum of {entry.survivors} sites"
    return "settled", what + (f": Rényi loss {entry.rho:.5f}" if entry.rho else "")


@app.command(epilog="Example: fedflow ledger verify ./site-berlin")
def verify(
    source: Annotated[Path, typer.Argument(help="A site's folder, or an exported ledger.")],
    key: Annotated[
        str, typer.Option(help="Public key (hex) an exported ledger must be signed by.")
    ] = "",
) -> None:
    """Check every signature, hash and price of a ledger. Exit status 2 when it was changed."""
    if source.is_dir():
        site = open_site(source)
        ledger = Ledger.open(site.ledger_path, site.identity.public)
        count = len(ledger.entries())
        ledger.close()
    else:
        if not key:
            raise InputError("name the site's public key", field="--key", allowed="64 hex digits")
        reading = read_export(source, PublicKey.from_hex(key))
        if reading.findings:
            raise Refusal("bad-ledger", f"{source}: {reading.findings[0].sentence}")
        count = len(reading.chain.entries)
    Console().print(f"[green]intact[/]: {count} entries, each signed and chained to the one before")


@app.command(epilog="Example: fedflow ledger export ./site-berlin berlin.jsonl")
def export(
    folder: Source, file: Annotated[Path, typer.Argument(help="The file to write.")]
) -> None:
    """Write all signed entries and a signed head to a file for an auditor."""
    site = open_site(folder)
    ledger = Ledger.open(site.ledger_path, site.identity)
    ledger.export(file)
    ledger.close()
    check = f"fedflow ledger verify {file} --key {site.identity.public.hex()}"
    Console().print(f"wrote {file}; check it with: {check}", soft_wrap=True)
