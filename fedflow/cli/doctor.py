"""``fedflow doctor``: look at a site and say what to do."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fedflow.doctor.findings import Finding
from fedflow.doctor.run import examine
from fedflow.learning.plan import load_plan

_MARKS = {
    "ok": "[green]ok      [/]",
    "note": "[cyan]note    [/]",
    "warning": "[yellow]warning [/]",
    "fault": "[bold red]fault   [/]",
}


def doctor(
    folder: Annotated[Path, typer.Argument(help="The site's folder.")],
    plan: Annotated[
        Path | None, typer.Option(help="Also say whether this site would accept this plan.")
    ] = None,
    prefect_api: Annotated[
        str, typer.Option(envvar="PREFECT_API_URL", help="The Prefect API, as the worker has it.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print findings for machines.")] = False,
) -> None:
    """Check a site: clock, exchange, Prefect, key, policy, data, ledger, disk, versions.

    Exit status 0 when nothing keeps the site from taking part, 1 when something does.
    """
    wanted = load_plan(plan) if plan is not None else None
    console = Console()
    found: list[Finding] = []
    for finding in examine(folder, plan=wanted, prefect_api=prefect_api, headers=_credential()):
        found.append(finding)
        if not as_json:
            _show(console, finding)
    levels = Counter(finding.level for finding in found)
    if as_json:
        facts = [finding.facts() for finding in found]
        typer.echo(json.dumps({"healthy": not levels["fault"], "findings": facts}))
    else:
        word = "this site cannot take part yet" if levels["fault"] else "this site can take part"
        counts = [_counted(levels[level], level) for level in ("fault", "warning")]
        console.print(f"\n{word}: {', '.join(counts)}")
    raise typer.Exit(1 if levels["fault"] else 0)


def _show(console: Console, finding: Finding) -> None:
    head = f"{_MARKS[finding.level]}[bold]{escape(finding.check):<14}[/]"
    console.print(f"{head} {escape(finding.says)}", soft_wrap=True, highlight=False)
    if finding.advice:
        console.print(f"{'':22} → {escape(finding.advice)}", soft_wrap=True, highlight=False)


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _credential() -> dict[str, str]:
    """What the worker would send with its requests, from the same environment."""
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if pair := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
