"""The SQLite file under the ledger: durable, append-only, safe for several processes.

Durability: a rollback journal (no WAL) with synchronous=EXTRA, so a committed transaction has
reached the disk, directory entry included, before the call returns. Entries and releases cannot be
changed or deleted through SQL (triggers); someone with the file can still edit it, and then the
signatures and hashes above this layer tell.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Misuse, Refusal

APPLICATION_ID = 0x46464C47  # "FFLG"
SCHEMA_VERSION = 2
_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE entries (seq INTEGER PRIMARY KEY, signed BLOB NOT NULL) STRICT;
CREATE TABLE releases (context BLOB PRIMARY KEY, bytes BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE facts (kind TEXT, context BLOB, value BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (kind, context)) STRICT, WITHOUT ROWID;
CREATE TABLE owner (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL, label TEXT NOT NULL)
    STRICT;
""" + "".join(
    f"CREATE TRIGGER {table}_keep_{verb} BEFORE {verb} ON {table}"
    " BEGIN SELECT RAISE(ABORT, 'append-only'); END;\n"
    for table in ("entries", "releases", "facts", "owner")
    for verb in ("UPDATE", "DELETE")
)
# A damaged file can make SQLite quote bytes that Python cannot read as text.
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class Store:
    """One open ledger file. Methods may be called from any thread, one at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self.connection = connection
        self._lock = threading.RLock()

    @classmethod
    def create(cls, path: Path, key: bytes, label: str, busy_seconds: float) -> Store:
        """Make the file (mode 0600) for the site with this public key; never overwrites."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise InputError(
                "a ledger exists here and is never overwritten", where=str(path)
            ) from None
        except OSError as err:
            raise InputError(f"cannot be written: {err.strerror}", where=str(path)) from None
        store = cls._connect(path, writable=True, busy_seconds=busy_seconds)
        with store.transaction() as db:
            for statement in _statements(_SCHEMA):
                db.execute(statement)
            db.execute("INSERT INTO owner VALUES (1, ?, ?)", (key, label))
        return store

    @classmethod
    def open(cls, path: Path, *, writable: bool, busy_seconds: float) -> Store:
        """Open an existing file; InputError when it is missing or not a ledger."""
        if not path.is_file():
            raise InputError("there is no ledger here", where=str(path))
        store = cls._connect(path, writable=writable, busy_seconds=busy_seconds)
        try:
            with store.reading() as db:
                found = [
                    db.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("application_id", "user_version")
                ]
                sound = found == [APPLICATION_ID, SCHEMA_VERSION] and _schema(db) == _expected()
            if not sound:
                raise InputError("is not a ledger this version can read", where=str(path))
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _connect(cls, path: Path, *, writable: bool, busy_seconds: float) -> Store:
        mode = "rw" if writable else "ro"
        try:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=busy_seconds,
                isolation_level=None,  # transactions are written out below
                check_same_thread=False,
            )
            if writable:
                connection.execute("PRAGMA journal_mode = DELETE")
                connection.execute("PRAGMA synchronous = EXTRA")
        except _UNREADABLE as err:
            raise InputError(f"is not a ledger or is damaged: {err}", where=str(path)) from None
        return cls(path, connection, writable)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on disk when it ends; Refusal ``ledger-unavailable`` otherwise.

        Takes the write lock first, so what is read inside cannot be changed by another process.
        """
        if not self.writable:
            raise Misuse("this ledger was opened for reading only")
        with self._lock:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self.connection
                    self.connection.execute("COMMIT")
                except BaseException:
                    if self.connection.in_transaction:
                        self.connection.execute("ROLLBACK")
                    raise
            except _UNREADABLE as err:
                raise self._refusal(err) from None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view for several reads."""
        with self._lock:
            try:
                self.connection.execute("BEGIN")
                try:
                    yield self.connection
                finally:
                    if self.connection.in_transaction:
                        self.connection.execute("ROLLBACK")
            except _UNREADABLE as err:
                raise self._refusal(err) from None

    def label(self) -> str:
        """The name the site gave the ledger when it was created."""
        with self.reading() as db:
            row = db.execute("SELECT label FROM owner").fetchone()
        return "" if row is None else str(row[0])

    def first_key(self) -> PublicKey:
        """The key the ledger was created with; InputError when it is gone."""
        with self.reading() as db:
            rows = db.execute("SELECT key FROM owner").fetchall()
        if len(rows) != 1 or not isinstance(rows[0][0], bytes) or len(rows[0][0]) != 32:
            why = "is not the ledger of anybody: the key it began with is gone"
            raise InputError(why, where=str(self.path))
        return PublicKey(rows[0][0])

    def close(self) -> None:
        """Close the file; further use is an error."""
        with self._lock:
            self.connection.close()

    def _refusal(self, err: Exception) -> Refusal:
        name = getattr(err, "sqlite_errorname", None) or ""
        if name.startswith(_DAMAGED) or isinstance(err, UnicodeDecodeError):
            return InputError("is not a ledger or is damaged", where=str(self.path))
        reason = {
            "SQLITE_FULL": "the disk is full",
            "SQLITE_BUSY": "another process holds it",
            "SQLITE_READONLY": "it is read-only",
        }.get(name, f"SQLite says: {err}")
        return Refusal(
            "ledger-unavailable",
            f"the ledger {self.path} cannot be used, so nothing is released: {reason}",
        )


def _schema(db: sqlite3.Connection) -> list[tuple[str, str | None]]:
    return db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


@functools.cache
def _expected() -> list[tuple[str, str | None]]:
    """The schema a sound file has: a missing trigger or index would weaken what it promises."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for statement in _statements(_SCHEMA):
            db.execute(statement)
        return _schema(db)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: ``executescript`` would commit behind our back."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
