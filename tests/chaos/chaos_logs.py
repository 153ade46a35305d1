"""Reads the logs of everything that was killed: only the absence of somebody may be in them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

#: Last lines of tracebacks that a dying neighbour explains.
EXPECTED = re.compile(
    r"httpx\.\w*(Connect|Read|Write|RemoteProtocol|Timeout|Network)\w*"
    r"|httpcore\.\w+"
    r"|(builtins\.)?(ConnectionRefused|ConnectionReset|BrokenPipe|Timeout|Connection)Error"
    r"|ConnectionError|OSError: Multiple exceptions|asyncio\.(exceptions\.)?(Cancelled|Timeout)\w*"
    r"|redis\.exceptions\.\w+|asyncpg\.\w*|sqlalchemy\.exc\.\w*(Interface|Operational|DBAPI)\w*"
    r"|websockets\.\w+|KeyboardInterrupt|prefect\.exceptions\.PrefectHTTPStatusError.*50[0-9]"
    r"|socket\.gaierror|EOFError|asyncio\.exceptions\.IncompleteReadError"
    r"|fedflow\.site\.training_client\.TrainingFailed|exceptiongroup|ExceptionGroup"
    r"|RuntimeError: (Cannot send a request|Event loop is closed|unable to perform operation)"
)
_LAST = re.compile(
    r"^[A-Za-z_][\w.]*(Error|Exception|Group|Interrupt|Refusal|Violation|Aborted|"
    r"Misuse|Failed|Exit|Closed\w*|Iteration|Warning|Abort|Found)\b.*"
)


def unexpected(paths: list[Path]) -> Counter[str]:
    """Ends of tracebacks that nothing explains, by log and exception."""
    found: Counter[str] = Counter()
    for path in paths:
        inside = False
        for line in path.read_text(errors="replace").splitlines():
            text = line.lstrip(" |+-")
            if text.startswith("Traceback (most recent call last)"):
                inside = True
            elif inside and _LAST.match(text):
                inside = False
                if not EXPECTED.match(text):
                    found[f"{path.parent.name}/{path.name}: {text[:160]}"] += 1
    return found


def relay_answers(path: Path) -> Counter[str]:
    """What a relay answered to puts: ``stored``, ``resent`` (the same bytes again), or a code."""
    found: Counter[str] = Counter()
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        if isinstance(said, dict) and said.get("method") == "PUT":
            word = {201: "stored", 200: "resent"}.get(said["status"])
            found[word or f"{said['status']} {said['code']}"] += 1
    return found


def mentions(paths: list[Path], word: str) -> int:
    """How many lines hold a word."""
    return sum(path.read_text(errors="replace").count(word) for path in paths)
