"""The chain of entries and the file it lives in, kept equal.

Whatever is read from the file passes through :class:`Chain` before it is believed; whatever is
written is in the chain and in the file, or in neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import FedflowError, InputError, Misuse, Refusal, Violation
from fedflow.privacy.chain import Chain
from fedflow.privacy.entries import Entry, Opened, Reserved, entry_hash, sign_entry
from fedflow.privacy.facts import SqliteFacts
from fedflow.privacy.store import Store

Write = Callable[[Entry, bytes | None], None]


class Journal:
    """A verified view of one ledger file, writable when it has the site's :class:`Identity`.

    ``key`` is the one the ledger has now; without one, whichever that is.
    """

    def __init__(self, store: Store, key: Identity | PublicKey | None) -> None:
        self.store = store
        self.identity = key if isinstance(key, Identity) else None
        self._key = key.public if isinstance(key, Identity) else key
        self.label, self._first = store.label(), store.first_key()
        self.chain = Chain(self._first)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of file and chain."""
        with self.store.reading() as db:
            self._catch_up(db)
            yield db

    @contextlib.contextmanager
    def writing(self) -> Iterator[Write]:
        """One transaction; the yielded function appends an entry and the release it pays for."""
        identity = self.identity
        if identity is None:
            raise Misuse("this ledger was opened for reading only")
        appended = False
        try:
            with self.store.transaction() as db:
                self._catch_up(db)
                if self.chain.key != identity.public:
                    raise Refusal(
                        "key-replaced",
                        f"the ledger {self.store.path} goes on under another key, so nothing is"
                        " released with this one; start the site again",
                    )

                def write(entry: Entry, release: bytes | None) -> None:
                    nonlocal appended
                    signed = sign_entry(entry, identity)
                    appended = True
                    try:
                        self.chain.add(signed)
                    except Violation as err:
                        raise Misuse(f"this entry would break the ledger: {err.message}") from None
                    db.execute("INSERT INTO entries VALUES (?, ?)", (entry.seq, signed))
                    if release is not None and isinstance(entry, Reserved):
                        db.execute("INSERT INTO releases VALUES (?, ?)", (entry.context, release))

                yield write
        except BaseException:
            if appended:  # memory is ahead of the file: read it all again next time
                self.chain = Chain(self._first)
            raise

    def go_on_as(self, identity: Identity) -> None:
        """Sign what follows with ``identity``, which an entry has made the ledger's key."""
        self.identity, self._key = identity, identity.public

    def verify(self) -> None:
        """Everything in the file, once. InputError naming the entry that is not intact."""
        with self.store.reading() as db:
            try:
                self._catch_up(db)
            except InputError:
                # Not even its first entry is by the key it says it began with.
                if self._key in (None, self._first) or self.chain.entries:
                    raise
            if self._key is not None and self._key != self.chain.key:
                raise self._unusable(f"is not the ledger of {self._key.fingerprint()}")
            for entry in self.chain.entries:
                if isinstance(entry, Opened) and entry.label != self.label:
                    raise self._damaged(entry.seq, f"it names the site {entry.label!r}")
                if isinstance(entry, Reserved):
                    self.stored_release(db, entry)
            if db.execute("SELECT count(*) FROM releases").fetchone()[0] != len(
                self.chain.reserved
            ):
                raise self._unusable("holds a release that no entry paid for")
            if not SqliteFacts.intact(db):
                raise self._unusable("holds a fact that was changed")

    def stored_release(self, db: sqlite3.Connection, paid: Reserved) -> bytes:
        """The bytes that ``paid`` paid for, checked against its hash."""
        row = db.execute("SELECT bytes FROM releases WHERE context = ?", (paid.context,)).fetchone()
        if row is None or hashlib.sha256(_blob(row[0])).digest() != paid.release_hash:
            raise self._damaged(paid.seq, "the release it paid for is missing or changed")
        return bytes(row[0])

    def _catch_up(self, db: sqlite3.Connection) -> None:
        """Verify what was appended since, by this process or another one."""
        last = len(self.chain.entries) - 1
        if last >= 0:
            row = db.execute("SELECT signed FROM entries WHERE seq = ?", (last,)).fetchone()
            if row is None or entry_hash(_blob(row[0])) != self.chain.head:
                raise self._damaged(last, "it was there before and is not there now")
        for seq, signed in db.execute(
            "SELECT seq, signed FROM entries WHERE seq NOT BETWEEN 0 AND ? ORDER BY seq", (last,)
        ):
            try:
                entry = self.chain.add(_blob(signed))
            except FedflowError as err:
                raise self._damaged(seq, err.message) from None
            if entry.seq != seq:
                raise self._damaged(seq, f"it says it is number {entry.seq}")

    def _damaged(self, seq: int, why: str) -> InputError:
        return self._unusable(
            f"ledger entry {seq} is not intact: {why}. Nothing is released until the ledger is"
            " restored from a complete copy"
        )

    def _unusable(self, why: str) -> InputError:
        return InputError(why, where=str(self.store.path))


def _blob(value: object) -> bytes:
    """A stored value as bytes: damage to a row can change the type SQLite takes it for."""
    return value if isinstance(value, bytes) else b""
