"""A process's own log file: plain lines for people, or JSON lines for machines.

It stays on the machine that wrote it, so it may hold what an exception says. It is kept small: an
edge site's disk must not fill up with it.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_BYTES, KEPT_FILES = 10 << 20, 4


class JsonFormatter(logging.Formatter):
    """One JSON object per record: ``time`` (UTC), ``level``, ``logger``, ``message``, ``error``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record."""
        when = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to(path: Path, form: str) -> logging.Handler:
    """Write what fedflow logs to the file at ``path``, as ``text`` or ``json``; the handler."""
    handler = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=KEPT_FILES)
    path.chmod(0o600)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logger = logging.getLogger("fedflow")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler
