"""Changes single values in a person's TOML file and nothing else: comments and order stay theirs.

The result is read again before it counts: but for the changed values it must say what it said.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedflow.errors import InputError
from fedflow.settings_file import read_text, toml_string
from fedflow.site.durable import sync_folder

Value = str | Sequence[str]
_LONGEST = 1 << 14
_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)


def set_values(path: Path, table: str, values: Mapping[str, Value]) -> None:
    """Set ``values`` in ``[table]`` (the top of the file for ""), which must have them already.

    InputError, and an untouched file, where that cannot be done safely.
    """
    text = read_text(path)
    changed = text
    for name, value in values.items():
        changed = _set(changed, table, name, value, str(path))
    try:
        before, after = tomllib.loads(text), tomllib.loads(changed)
        own = after[table] if table else after
        if any(own.pop(name) != _plain(value) for name, value in values.items()):
            raise ValueError
        old = before[table] if table else before
        for name in values:
            old.pop(name)
        if before != after:
            raise ValueError
    except (ValueError, KeyError, AttributeError):
        raise _by_hand(str(path), table, ", ".join(values)) from None
    if changed != text:
        _replace(path, changed)


def _set(text: str, table: str, name: str, value: Value, where: str) -> str:
    start = 0
    if table:
        header = re.search(rf"^[ \t]*\[[ \t]*{re.escape(table)}[ \t]*\][^\n]*$", text, re.MULTILINE)
        if header is None:
            raise _by_hand(where, table, name)
        start = header.end()
    following = _HEADER.search(text, start)
    key = re.compile(rf"^[ \t]*{re.escape(name)}[ \t]*=[ \t]*", re.MULTILINE).search(text, start)
    if key is None or (following and key.start() > following.start()):
        raise _by_hand(where, table, name)
    stop = _end_of_value(text, key.end())
    if stop is None:
        raise _by_hand(where, table, name)
    return text[: key.end()] + _written(value) + text[stop:]


def _end_of_value(text: str, start: int) -> int | None:
    """Where the text or list that starts at ``start`` ends; None when it is neither."""
    for stop in re.finditer(r"[\"'\]]", text[start:]):
        end = start + stop.end()
        with contextlib.suppress(ValueError):
            tomllib.loads(f"x = {text[start:end]}")
            return end
        if end - start > _LONGEST:
            break
    return None


def _written(value: Value) -> str:
    if isinstance(value, str):
        return toml_string(value)
    if len(value) < 2:
        return "[" + ", ".join(toml_string(item) for item in value) + "]"
    return "[\n" + "".join(f"    {toml_string(item)},\n" for item in value) + "]"


def _plain(value: Value) -> Any:
    return value if isinstance(value, str) else list(value)


def _by_hand(where: str, table: str, names: str) -> InputError:
    inside = f" in [{table}]" if table else ""
    return InputError(
        f"{names}{inside} cannot be set without touching more of this file; write it there as a"
        " line of its own",
        where=where,
    )


def _replace(path: Path, text: str) -> None:
    """Write the file whole or not at all, for the same owner and with the same mode."""
    status, aside = path.stat(), path.with_name(path.name + ".new")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), status.st_mode & 0o777)
        with contextlib.suppress(PermissionError):
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)
