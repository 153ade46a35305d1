"""A folder as the exchange, reached through fsspec."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fedflow.crypto.identity import Identity
from fedflow.errors import InputError, Refusal, Violation
from fedflow.exchange.base import MAX_OBJECT_BYTES, Exchange, check_key
from fedflow.exchange.frame import HEADER, frame, unframe
from fedflow.extras import sentence


class FsspecExchange:
    """Objects as framed files below a root of any fsspec file system."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root.rstrip("/")
        self._local = isinstance(fs, LocalFileSystem)

    @property
    def remote(self) -> bool:
        """A folder of this machine is not."""
        return not self._local

    def put(self, key: str, payload: bytes) -> None:
        """Store once: visible whole or not at all."""
        path = f"{self._root}/{check_key(key)}"
        data = frame(payload)
        try:
            self._create(path, data)
        except FileExistsError:
            # A stored object that is not these bytes is someone else's, or damaged: either way
            # this name is taken.
            if self._size(path) != len(data) or self._fs.cat_file(path) != data:
                raise Violation("already-put", f"{key} is taken by other bytes") from None

    def _create(self, path: str, data: bytes) -> None:
        if not self._local:
            self._fs.pipe_file(path, data, mode="create")
            return
        # The local pipe_file is neither atomic for readers nor exclusive: write aside, then link.
        folder, name = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        aside = f"{folder}/.{name}.{secrets.token_hex(8)}"
        try:
            with open(aside, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(aside, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)

    def get(self, key: str, limit: int = MAX_OBJECT_BYTES) -> bytes | None:
        """Read, refusing before reading what is larger than ``limit``."""
        path = f"{self._root}/{check_key(key)}"
        try:
            size = self._size(path)
            if size is None:
                raise Violation("not-an-object", f"{key} is not a file")
            if size > limit + HEADER:
                raise Violation("too-long", f"{key} is larger than the {limit} bytes allowed")
            return unframe(self._fs.cat_file(path, 0, limit + HEADER + 1))
        except FileNotFoundError:
            return None

    def _size(self, path: str) -> int | None:
        """Bytes of a stored file; None for what is no file: reading a pipe would never end."""
        info = self._fs.info(path)
        return int(info["size"]) if info["type"] == "file" else None

    def list(self, prefix: str) -> list[str]:
        """Children of a folder, without files still being written."""
        path = f"{self._root}/{check_key(prefix)}"
        try:
            names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(path, False))
            return sorted(name for name in names if not name.startswith("."))
        except FileNotFoundError:
            return []


def resolve_url(url: str, folder: Path) -> str:
    """``url`` as settings in ``folder`` mean it: a plain path is relative to that folder."""
    return url if "://" in url else str(folder / url)


def open_exchange(url: str, identity: Identity | None = None) -> Exchange:
    """The exchange at ``url``: a folder path, any URL fsspec knows, or a relay's (http, https).

    A relay asks who writes: ``identity`` signs every request. InputError when unusable.
    """
    if url.startswith(("http://", "https://")):
        from fedflow.exchange.relay import RelayExchange  # httpx: not needed for folders

        return RelayExchange(url, identity)
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        if url.startswith("s3://"):
            raise Refusal("missing-extra", sentence("s3")) from None
        raise InputError(f"cannot open the exchange: {error}", field="exchange") from None
    except ValueError as error:
        raise InputError(
            f"cannot open the exchange: {error}", field="exchange", allowed="a folder or fsspec URL"
        ) from None
    if isinstance(fs, LocalFileSystem):
        Path(root).mkdir(parents=True, exist_ok=True)
    return FsspecExchange(fs, root)
