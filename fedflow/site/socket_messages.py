"""The lines of the site socket: every request a worker may send and every reply it may get.

One JSON object per line, at most ``MAX_LINE`` bytes. Reading is strict: no unknown or repeated
field, no conversion between types, no control characters.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.types import StringConstraints

from fedflow.errors import Misuse, Violation

MAX_LINE = 8 * 1024  # bytes, with the newline

JOB_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
MANIFEST_PATTERN = r"^[0-9a-f]{64}$"

JobId = Annotated[str, StringConstraints(pattern=JOB_PATTERN)]
ManifestHex = Annotated[str, StringConstraints(pattern=MANIFEST_PATTERN)]
Code = Annotated[str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9-]{0,62})?$")]
Reason = Annotated[str, StringConstraints(pattern=r"^\P{C}*$", max_length=600)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
RoundNumber = Annotated[int, Field(ge=0, le=0xFFFFFFFF)]
AccountName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}/(train|evaluate|all)$")
]
Threshold = Literal["50-percent", "25-percent", "10-percent", "next-round"]
EventId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Phase = Literal["admitted", "training", "masked", "done"]
Outcome = Literal["completed", "refused", "cancelled", "error"]


class _Line(BaseModel):
    # pydantic's own regex engine: there, $ matches only the very end of a text
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class SessionRequest(_Line):
    """Open (or attach again to) the session of ``job``, whose manifest hashes to ``manifest``."""

    op: Literal["session"] = "session"
    job: JobId
    manifest: ManifestHex


class CancelRequest(_Line):
    """Ask the daemon to end the session of ``job`` at the next safe point."""

    op: Literal["cancel"] = "cancel"
    job: JobId


class StatusRequest(_Line):
    """Ask what the daemon is doing."""

    op: Literal["status"] = "status"


class Accepted(_Line):
    """The request was understood and is being carried out."""

    event: Literal["accepted"] = "accepted"


class Progress(_Line):
    """The session reached ``phase`` of ``round``."""

    event: Literal["progress"] = "progress"
    round: RoundNumber
    phase: Phase


class BudgetLow(_Line):
    """An account of the site crossed ``threshold``: so much left, or not enough for a next round.

    Names and a threshold only, because it is shown in Prefect. ``id`` is random and stays the same
    when an alarm is told again.
    """

    event: Literal["budget-low"] = "budget-low"
    account: AccountName
    threshold: Threshold
    id: EventId


class End(_Line):
    """The session is over. ``code`` and ``reason`` are shown in Prefect: free of data."""

    event: Literal["end"] = "end"
    outcome: Outcome
    code: Code = ""
    reason: Reason = ""


class Status(_Line):
    """What the daemon does now: its label, its open session if any, how far that is, since when.

    ``seconds`` have passed since the session reached ``phase``, or was opened.
    """

    event: Literal["status"] = "status"
    site: Label
    job: JobId | None = None
    round: RoundNumber | None = None
    phase: Phase | None = None
    seconds: int | None = Field(default=None, ge=0, le=1 << 31)


Request = SessionRequest | CancelRequest | StatusRequest
Reply = Accepted | Progress | BudgetLow | End | Status

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])
_REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="event")])
_T = TypeVar("_T")


def encode_line(message: Request | Reply) -> bytes:
    """One message as a JSON line (UTF-8, at most ``MAX_LINE`` bytes with its newline)."""
    line = message.model_dump_json(exclude_none=True).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise Misuse(f"a line of {len(line)} bytes, at most {MAX_LINE} allowed")
    return line


def decode_request(line: bytes) -> Request:
    """Read a worker's line; Violation "bad-line" for anything but a valid request."""
    return _decode(line, _REQUEST)


def decode_reply(line: bytes) -> Reply:
    """Read a daemon's line; Violation "bad-line" for anything but a valid reply."""
    return _decode(line, _REPLY)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError
    return out


def _no_constant(_: str) -> Any:
    raise ValueError


def _decode(line: bytes, adapter: TypeAdapter[_T]) -> _T:
    if len(line) > MAX_LINE:
        raise Violation("line-too-long", f"a line is longer than {MAX_LINE} bytes")
    try:
        # text first: json would guess UTF-16 and UTF-32 from the bytes
        value = json.loads(
            line.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise Violation("bad-line", "a line is not one JSON object") from None
    try:
        return adapter.validate_python(value)
    except ValidationError as exc:
        problems = ", ".join(sorted({str(error["type"]) for error in exc.errors()})[:5])
        raise Violation("bad-line", f"a line breaks the socket protocol: {problems}") from None
