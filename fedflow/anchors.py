"""The highest ledger position seen of every key, kept on disk by sites and by the coordinator.

It is a file of its own, because whoever puts back an older copy of a ledger would otherwise put
back with it what would have shown that; and SQLite, because a row is raised in place, two processes
never undo each other's work, and the file grows with the number of keys met and with nothing else.
Losing it costs memory of others, never privacy: it is built up again from what they sign.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Refusal
from fedflow.secagg.positions import Position

BUSY_SECONDS = 20.0

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS floors (key BLOB PRIMARY KEY CHECK (length(key) = 32),"
    " entries INTEGER NOT NULL CHECK (entries >= 0),"
    " head BLOB NOT NULL CHECK (length(head) IN (0, 32))) STRICT, WITHOUT ROWID"
)
_READ = "SELECT entries, head FROM floors WHERE key = ?"
_WRITE = "INSERT OR REPLACE INTO floors VALUES (?, ?, ?)"


class Anchors:
    """The positions kept in the file at ``path``, made when first needed (mode 0600).

    Callers name sites by their index in ``roster``. What is kept is by their public keys, so what
    was seen in one job holds in every other. Every method is one transaction; what it writes is on
    disk when it returns. Refusal ``anchors-unavailable`` when the file cannot be used: then nothing
    that relies on it may leave.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def seen(
        self, roster: Mapping[int, PublicKey], positions: Mapping[int, Position]
    ) -> dict[int, Position]:
        """Remember ``positions`` of sites; what was remembered of them before."""
        with self._transaction() as db:
            before = _read(db, {site: roster[site] for site in positions})
            raised = []
            for site, position in positions.items():
                old = before.get(site)
                new = position if old is None else old.raised(position)
                if new != old:
                    raised.append((roster[site].raw, new.entries, new.head))
            db.executemany(_WRITE, raised)
        return before

    def floors(self, roster: Mapping[int, PublicKey]) -> dict[int, Position]:
        """What is remembered of the sites of ``roster``; nothing of those never seen."""
        with self._transaction() as db:
            return _read(db, roster)

    def succeed(self, keys: Iterable[tuple[PublicKey, PublicKey]]) -> None:
        """For each (old, new): a ledger that goes on under ``new`` is longer than ``old`` showed.

        The entry that names the new key came after all that the old one signed. In the order of the
        handovers; doing it again changes nothing unless more was seen of an old key.
        """
        with self._transaction() as db:
            for old, new in keys:
                both = _read(db, {0: old, 1: new})
                if 0 not in both:
                    continue
                least = Position(both[0].entries + 1)
                raised = both[1].raised(least) if 1 in both else least
                if raised != both.get(1):
                    db.execute(_WRITE, (new.raw, raised.entries, raised.head))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, alone, and on disk when it ends."""
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with contextlib.closing(
                sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            ) as db:
                db.execute("PRAGMA synchronous = EXTRA")
                db.execute("BEGIN IMMEDIATE")
                db.execute(_SCHEMA)
                yield db
                db.execute("COMMIT")  # closing without it rolls back
        except (sqlite3.Error, OSError) as error:
            raise Refusal(
                "anchors-unavailable",
                f"{self._path}, which remembers how long ledgers were, cannot be used, so nothing"
                f" leaves: {error}. A damaged file may be removed: what it held is then forgotten",
            ) from None


def _read(db: sqlite3.Connection, roster: Mapping[int, PublicKey]) -> dict[int, Position]:
    found = ((site, db.execute(_READ, (key.raw,)).fetchone()) for site, key in roster.items())
    return {site: Position(*row) for site, row in found if row is not None}
