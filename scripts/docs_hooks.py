"""Joins what lies outside ``docs/`` to the documentation site: SECURITY.md, and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import typer

_ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill the threat model with SECURITY.md, and the list of commands with their own help."""
    if page.file.src_uri == "threat-model.md":
        return (_ROOT / "SECURITY.md").read_text().replace("](docs/", "](")
    if page.file.src_uri == "reference/commands.md":
        return markdown + commands()
    return markdown


def commands() -> str:
    """Every command as its own help describes it."""
    from fedflow.cli.main import app

    root = typer.main.get_command(app)
    return "\n".join(_sections(root, click.Context(root, info_name="fedflow"), 2))


def _sections(command: Any, context: Any, level: int) -> list[str]:
    shown = [f"\n{'#' * min(level, 4)} `{context.command_path}`\n", _text(command.help), ""]
    commands = getattr(command, "commands", None)
    if commands is None:
        usage = command.get_usage(context).replace("Usage: ", "")
        shown += ["```text", usage, "```", "", *_options(command, context)]
        if command.epilog:
            example = _text(command.epilog).removeprefix("Example: ")
            shown += ["", "Example:", "", "```sh", example, "```"]
        return shown
    for name in sorted(commands):
        inner = type(context)(commands[name], info_name=name, parent=context)
        shown += _sections(commands[name], inner, level + 1)
    return shown


def _options(command: Any, context: Any) -> list[str]:
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[0] != "--help":
            words = " ".join(record[1].split())
            name, words = (
                text.replace("|", "\\|").replace("<", "&lt;") for text in (record[0], words)
            )
            rows.append(
                f"| `{record[0]}` | {words} |" if "|" not in record[0] else f"| {name} | {words} |"
            )
    return ["| option | |", "|---|---|", *rows] if rows else []


def _text(text: str | None) -> str:
    return " ".join((text or "").split())
