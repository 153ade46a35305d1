"""Keep what a server wrote from forging lines, or commanding terminals, in a site's own log."""

from __future__ import annotations

import logging

MAX_TEXT = 2000  # characters of a message

_formatter = logging.Formatter()


def visible(text: str, keep: str = "") -> str:
    """``text`` with every control or otherwise unprintable character written out."""
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def one_line(record: logging.LogRecord) -> bool:
    """Filter for a logger: names of runs, pools and states come from a server, errors too."""
    record.msg, record.args = visible(record.getMessage()[:MAX_TEXT]), None
    if record.exc_info and not record.exc_text:
        record.exc_text = visible(_formatter.formatException(record.exc_info), keep="\n")
    return True
