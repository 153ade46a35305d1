"""One thing that was looked at: how it is, and what to do if it is not well."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """``level`` "fault" keeps the site from taking part; "warning" may soon; "note" is a choice.

    ``advice`` is what to do, empty when nothing is to be done.
    """

    check: str
    level: Level
    says: str
    advice: str = ""

    def facts(self) -> dict[str, str]:
        """As plain values."""
        return asdict(self)


def ok(check: str, says: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", says)


def note(check: str, says: str, advice: str = "") -> Finding:
    """Not wrong, but worth knowing."""
    return Finding(check, "note", says, advice)


def warning(check: str, says: str, advice: str) -> Finding:
    """Works today."""
    return Finding(check, "warning", says, advice)


def fault(check: str, says: str, advice: str) -> Finding:
    """Does not work."""
    return Finding(check, "fault", says, advice)
