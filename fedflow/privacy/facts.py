"""Durable single-shot facts: at most one value per (kind, context), for ever.

A site claims what it is about to say before it says it. After a crash, a replay or a lying server
it can then only ever repeat itself.
"""

from __future__ import annotations

import hashlib
import sqlite3

from fedflow.errors import Misuse, Violation
from fedflow.privacy.store import Store

MAX_VALUE = 1 << 16


class SqliteFacts:
    """Facts in the ledger's file. Implements the ``claim`` that secure aggregation asks for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def claim(self, kind: str, ctx: bytes, value: bytes) -> None:
        """Make ``value`` the one value of (kind, ctx), on disk when this returns.

        Claiming the same value again is fine; another one is Violation ``already-claimed``. Refusal
        ``ledger-unavailable`` when it cannot be made durable: then it must not be acted on.
        """
        if not kind or len(ctx) > MAX_VALUE or len(value) > MAX_VALUE:
            raise Misuse("a fact needs a kind, and a context and value of at most 64 KiB")
        with self._store.transaction() as db:
            row = db.execute(
                "SELECT value FROM facts WHERE kind = ? AND context = ?", (kind, ctx)
            ).fetchone()
            if row is None:
                db.execute(
                    "INSERT INTO facts VALUES (?, ?, ?, ?)",
                    (kind, ctx, value, _digest(kind, ctx, value)),
                )
            elif row[0] != value:
                raise Violation(
                    "already-claimed", f"a different {kind!r} was already stated in this context"
                )

    @staticmethod
    def intact(db: sqlite3.Connection) -> bool:
        """Whether every stored fact still is what was claimed (a check against decay, not lies)."""
        rows = db.execute("SELECT kind, context, value, digest FROM facts")
        return all(
            [type(column) for column in row] == [str, bytes, bytes, bytes]
            and _digest(*row[:3]) == row[3]
            for row in rows
        )


def _digest(kind: str, ctx: bytes, value: bytes) -> bytes:
    parts = (kind.encode(), ctx, value)
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.sha256(b"fedflow/1 fact\0" + framed).digest()
