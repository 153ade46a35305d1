"""What a site must never say twice in different words, even across a restart."""

from __future__ import annotations

import threading
from typing import Protocol

from fedflow.errors import Violation


class Facts(Protocol):
    """Durable memory of single-shot statements."""

    def claim(self, kind: str, ctx: bytes, value: bytes) -> None:
        """Record ``value`` as the one value of (kind, ctx); return only once it is durable.

        The same value again is fine. Violation ``already-claimed`` for a different one.
        """


class MemoryFacts:
    """Facts that last as long as the process: for simulations and tests."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, bytes], bytes] = {}
        self._lock = threading.Lock()

    def claim(self, kind: str, ctx: bytes, value: bytes) -> None:
        """Record or confirm; Violation ``already-claimed`` for a different value."""
        with self._lock:
            if self._values.setdefault((kind, ctx), value) != value:
                raise Violation(
                    "already-claimed", f"this site already gave another '{kind}' for this round"
                )
