"""PostgreSQL as a relay's store: several relays may share one database.

An object is one row; large ones have their bytes in rows of parts, written in the same transaction.
The primary key is what makes a name be taken once, also by two relays at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from fedflow.errors import Violation
from fedflow.relay.store import taken

log = logging.getLogger("fedflow.relay")

#: Bytes of one part. A value of PostgreSQL has at most 1 GiB, and is held in memory several times.
PART_BYTES = 4 << 20
CONNECT_SECONDS, STATEMENT_SECONDS = 5.0, 60.0
_LOCK = 0x66656466  # of the schema: two relays may start at once
_SCHEMA = """
CREATE TABLE IF NOT EXISTS fedflow_objects (
    key text COLLATE "C" PRIMARY KEY,
    size bigint NOT NULL,
    sha256 bytea NOT NULL,
    body bytea,
    stored timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS fedflow_parts (
    key text COLLATE "C" NOT NULL REFERENCES fedflow_objects ON DELETE CASCADE,
    part int NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (key, part)
);
ALTER TABLE fedflow_objects ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE fedflow_parts ALTER COLUMN body SET STORAGE EXTERNAL;
"""  # EXTERNAL: masked vectors cannot be compressed, so do not try


class PostgresStore:
    """Objects in the database at ``url``. Connects when first needed, and again after outages."""

    def __init__(self, url: str, *, connections: int = 10) -> None:
        self._url, self._connections = url, connections
        self._pool: Any = None
        self._opening = asyncio.Lock()

    async def put(self, key: str, payload: bytes) -> None:
        """One transaction; committed to disk when it returns."""
        digest, small = hashlib.sha256(payload).digest(), len(payload) <= PART_BYTES
        async with self._connection() as db:
            if small:
                new = await db.fetchval(_INSERT, key, len(payload), digest, payload)
            else:
                async with db.transaction():
                    new = await db.fetchval(_INSERT, key, len(payload), digest, None)
                    if new is not None:
                        for part, at in enumerate(range(0, len(payload), PART_BYTES)):
                            body = payload[at : at + PART_BYTES]
                            await db.execute(_INSERT_PART, key, part, body)
            if new is None:
                row = await db.fetchrow(_HEAD, key)
                if row is None or (row["size"], row["sha256"]) != (len(payload), digest):
                    raise taken(key)

    async def get(self, key: str) -> bytes | None:
        """Read whole; held against its digest."""
        async with self._connection() as db:
            row = await db.fetchrow(_READ, key)
            if row is None:
                return None
            payload: bytes = row["body"]
            if row["body"] is None:
                parts = await db.fetch(_READ_PARTS, key)
                payload = b"".join(part["body"] for part in parts)
        if hashlib.sha256(payload).digest() != row["sha256"]:
            raise Violation("damaged", f"{key} does not match its checksum")
        return payload

    async def size(self, key: str) -> int | None:
        """Without reading it."""
        async with self._connection() as db:
            size: int | None = await db.fetchval(_SIZE, key)
            return size

    async def names(self, prefix: str) -> list[str]:
        """Children of a folder."""
        async with self._connection() as db:
            rows = await db.fetch(_NAMES, *_range(prefix), len(prefix) + 2)
        return sorted(row["name"] for row in rows)

    async def below(self, prefix: str) -> list[tuple[str, int, float]]:
        """All objects of a folder."""
        async with self._connection() as db:
            rows = await db.fetch(_BELOW, *_range(prefix))
        return [(row["key"], row["size"], row["stored"].timestamp()) for row in rows]

    async def remove(self, prefix: str) -> None:
        """One statement, all or nothing."""
        async with self._connection() as db:
            await db.execute(_REMOVE, *_range(prefix))

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                await asyncio.wait_for(pool.close(), CONNECT_SECONDS)
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pool.terminate()

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A connection that works; OSError for every reason why there is none now."""
        try:
            async with (await self._opened()).acquire(timeout=CONNECT_SECONDS) as db:
                yield db
        except (asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            log.warning("the database: %s: %s", type(error).__name__, error)
            raise OSError("the database is not reachable") from None

    async def _opened(self) -> Any:
        async with self._opening:
            if self._pool is None:
                pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=self._connections,
                    timeout=CONNECT_SECONDS,
                    command_timeout=STATEMENT_SECONDS,
                )
                try:
                    async with pool.acquire() as db, db.transaction():
                        await db.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
                        await db.execute(_SCHEMA)
                except BaseException:
                    pool.terminate()
                    raise
                self._pool = pool
            return self._pool


def _range(prefix: str) -> tuple[str, str]:
    """All keys of a folder lie between these two: "0" is the character after "/"."""
    return f"{prefix}/", f"{prefix}0"


_INSERT = (
    "INSERT INTO fedflow_objects (key, size, sha256, body) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT DO NOTHING RETURNING size"
)
_INSERT_PART = "INSERT INTO fedflow_parts VALUES ($1, $2, $3)"
_HEAD = "SELECT size, sha256 FROM fedflow_objects WHERE key = $1"
_READ = "SELECT sha256, body FROM fedflow_objects WHERE key = $1"
_READ_PARTS = "SELECT body FROM fedflow_parts WHERE key = $1 ORDER BY part"
_SIZE = "SELECT size FROM fedflow_objects WHERE key = $1"
_NAMES = (
    "SELECT DISTINCT split_part(substr(key, $3), '/', 1) AS name FROM fedflow_objects"
    " WHERE key > $1 AND key < $2"
)
_BELOW = "SELECT key, size, stored FROM fedflow_objects WHERE key > $1 AND key < $2"
_REMOVE = "DELETE FROM fedflow_objects WHERE key > $1 AND key < $2"
