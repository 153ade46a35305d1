"""A ledger as a text file for auditors, and reading it back without trusting anyone.

JSON lines: ``{"entry": "<hex>"}`` per signed entry, oldest first, then one ``{"head": "<hex>"}``: a
signed statement of how many entries there are. Without it, entries cut off at the end would leave
no trace.

A ledger whose key was replaced starts with ``{"key": "<hex>"}``, its first key. Anybody could write
that line: what counts is that the key the reader was given is one of those that signed the ledger.
Each old key names the next, and each new one signed what it took over, so any of them is enough.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fedflow.crypto.identity import PublicKey
from fedflow.errors import FedflowError, InputError, Violation
from fedflow.privacy.chain import Chain
from fedflow.privacy.entries import MAX_ENTRY_BYTES, Head, read_head

MAX_LINE = 2 * MAX_ENTRY_BYTES + 256


@dataclass(frozen=True)
class ExportFinding:
    """One thing wrong with an exported ledger. ``entry`` is the entry's number, when it has one."""

    code: str
    sentence: str
    entry: int | None = None


@dataclass
class ExportReading:
    """What an export proves: ``chain`` holds the entries up to the first finding, if any."""

    chain: Chain
    head: Head | None = None
    findings: list[ExportFinding] = field(default_factory=list)


def write_export(
    path: str | Path, signed: Iterable[bytes], head: bytes, first_key: PublicKey | None = None
) -> None:
    """Write the export, complete or not at all; InputError when the file cannot be written.

    ``first_key`` is given for a ledger that has had more than one.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    lines = [] if first_key is None else [json.dumps({"key": first_key.hex()})]
    lines += [json.dumps({"entry": item.hex()}) for item in signed]
    lines.append(json.dumps({"head": head.hex()}))
    try:
        with open(temporary, "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as err:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"cannot be written: {err.strerror}", where=str(path)) from None


def read_export(path: str | Path, key: PublicKey) -> ExportReading:
    """Read an export and check it against ``key``: signatures, chain, prices, budgets and head.

    ``key`` is any key the ledger has had; the others follow from it. Where it is none of them, the
    reading holds no entry, as nothing says whose they are.
    Never raises for bad contents, those are findings; InputError when the file cannot be read.
    """
    reading = ExportReading(Chain(key))
    try:
        with open(path, "rb") as file:
            first = first_key_in(line := file.readline(MAX_LINE + 1))
            if first is not None:
                reading, line = ExportReading(Chain(first)), file.readline(MAX_LINE + 1)
            while line and _take(line, reading):
                line = file.readline(MAX_LINE + 1)
    except OSError as err:
        raise InputError(f"cannot be read: {err.strerror}", where=str(path)) from None
    if reading.head is None and not reading.findings:
        _find(reading, "truncated", "the export ends without its signed head: entries may be cut")
    if key not in reading.chain.keys:
        sentence = f"the ledger is not one of {key.fingerprint()}, neither now nor before"
        foreign = ExportFinding("foreign-ledger", sentence)
        return ExportReading(Chain(key), None, [*reading.findings, foreign])
    if first is not None and len(reading.chain.keys) == 1 and not reading.findings:
        _find(reading, "bad-line", "it names a first key, but the key was never replaced")
    return reading


def first_key_in(line: bytes) -> PublicKey | None:
    """The first key that an export's first line names; None for any other line."""
    try:
        _name, data = _parse(line, ("key",))
        return PublicKey(data)
    except Violation:
        return None


def verify_export(path: str | Path, key: PublicKey) -> list[ExportFinding]:
    """Everything wrong with an export, empty when it is intact. See :func:`read_export`."""
    return read_export(path, key).findings


def _take(line: bytes, reading: ExportReading) -> bool:
    """Take one line in; False when reading on would prove nothing."""
    chain, number = reading.chain, len(reading.chain.entries)
    if reading.head is not None:
        return _find(reading, "trailing", "there is more after the signed head")
    try:
        name, data = _parse(line)
    except Violation as err:
        return _find(reading, err.code, f"entry {number}: {err.message}", number)
    try:
        if name == "entry":
            chain.add(data)
            return True
        head = read_head(data, chain.key)
    except FedflowError as err:
        where = f"entry {number}" if name == "entry" else "the head"
        return _find(reading, err.code, f"{where} is not intact: {err.message}", number)
    if (head.entries, head.hash) != (number, chain.head):
        return _find(
            reading,
            "truncated",
            f"the site signed a ledger of {head.entries} entries, the export holds {number} that"
            " do not end where it says",
        )
    reading.head = head
    return True


def _parse(line: bytes, names: tuple[str, ...] = ("entry", "head")) -> tuple[str, bytes]:
    if len(line) > MAX_LINE:
        raise Violation("too-long", "the line is too long for a ledger entry")
    try:
        written = line.decode()
        ((name, text),) = json.loads(written).items()
        data = bytes.fromhex(text)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise Violation("bad-line", "the line is not an entry of a ledger export") from None
    if name not in names or json.dumps({name: data.hex()}) != written.strip("\n"):
        raise Violation("bad-line", "the line is not in the export's one form")
    return name, data


def _find(reading: ExportReading, code: str, sentence: str, entry: int | None = None) -> bool:
    reading.findings.append(ExportFinding(code, sentence, entry))
    return False
