"""Where a relay keeps objects: the interface, and a folder or object store behind it."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from pathlib import Path
from typing import Protocol

from fedflow.errors import Violation
from fedflow.exchange.base import MAX_OBJECT_BYTES
from fedflow.exchange.folder import FsspecExchange, open_exchange
from fedflow.exchange.frame import HEADER

_REMOVED = ".removed-"


class Store(Protocol):
    """Put-once objects. OSError from any method: not reachable now, and nothing half was kept."""

    async def put(self, key: str, payload: bytes) -> None:
        """Store durably and at most once; Violation ``already-put`` when other bytes are there."""

    async def get(self, key: str) -> bytes | None:
        """The payload, or None. Violation when it is damaged."""

    async def size(self, key: str) -> int | None:
        """Bytes of the payload, None when there is none."""

    async def names(self, prefix: str) -> list[str]:
        """The names directly below a folder, sorted."""

    async def below(self, prefix: str) -> list[tuple[str, int, float]]:
        """Name, bytes and time of storing (seconds since the epoch) of all objects of a folder."""

    async def remove(self, prefix: str) -> None:
        """Remove a folder whole: nobody sees a part of it."""

    async def close(self) -> None:
        """Let go of what is open."""


class FolderStore:
    """An exchange of this machine as the store. Its files are those of ``open_exchange``."""

    def __init__(self, path: Path) -> None:
        self._root = path.resolve()
        exchange = open_exchange(str(self._root))
        assert isinstance(exchange, FsspecExchange)
        self._exchange = exchange
        for left in self._root.glob(f"{_REMOVED}*"):  # its removal was cut short
            shutil.rmtree(left, ignore_errors=True)

    async def put(self, key: str, payload: bytes) -> None:
        """Store once."""
        await asyncio.to_thread(self._exchange.put, key, payload)

    async def get(self, key: str) -> bytes | None:
        """Read back."""
        return await asyncio.to_thread(self._exchange.get, key, MAX_OBJECT_BYTES)

    async def size(self, key: str) -> int | None:
        """From the file's size."""

        def look() -> int | None:
            try:
                return max(0, os.stat(self._root / key).st_size - HEADER)
            except (FileNotFoundError, NotADirectoryError):
                return None

        return look()

    async def names(self, prefix: str) -> list[str]:
        """Children of a folder."""
        return await asyncio.to_thread(self._exchange.list, prefix)

    async def below(self, prefix: str) -> list[tuple[str, int, float]]:
        """Walk the folder, past files still being written."""

        def walk() -> list[tuple[str, int, float]]:
            found = []
            for folder, _, files in os.walk(self._root / prefix):
                for name in files:
                    if name.startswith("."):
                        continue
                    path = Path(folder) / name
                    info = path.stat()
                    key = path.relative_to(self._root).as_posix()
                    found.append((key, max(0, info.st_size - HEADER), info.st_mtime))
            return found

        return await asyncio.to_thread(walk)

    async def remove(self, prefix: str) -> None:
        """Rename, then delete: what is found of it after a crash is deleted at the next start."""

        def drop() -> None:
            aside = self._root / f"{_REMOVED}{secrets.token_hex(8)}"
            (self._root / prefix).rename(aside)
            shutil.rmtree(aside)

        await asyncio.to_thread(drop)

    async def close(self) -> None:
        """Nothing is open."""


def taken(key: str) -> Violation:
    """What a store says of a name that has other bytes."""
    return Violation("already-put", f"{key} is taken by other bytes")
