"""A folder or an object store as the exchange, reached through fsspec."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fedflow.crypto.identity import Identity
from fedflow.errors import FedflowError, InputError, Refusal, Violation
from fedflow.exchange.base import MAX_OBJECT_BYTES, Exchange, check_key
from fedflow.exchange.frame import HEADER, frame, unframe
from fedflow.extras import sentence
from fedflow.wire.codec import plain_text

#: What the query of an s3:// URL may say. Credentials come from the environment, never from here.
_S3_CLIENT_OPTIONS = ("endpoint_url", "region_name")
_S3_SECONDS = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 2}}


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
        with self._errors():
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
        with self._errors(), contextlib.suppress(FileNotFoundError):
            size = self._size(path)
            if size is None:
                raise Violation("not-an-object", f"{key} is not a file")
            if size > limit + HEADER:
                raise Violation("too-long", f"{key} is larger than the {limit} bytes allowed")
            if self._local:  # only so much, should it have grown since
                return unframe(self._fs.cat_file(path, 0, size))
            # Whole: a store that lies about sizes could answer a range with anything as well.
            return unframe(self._fs.cat_file(path))
        return None

    def _size(self, path: str) -> int | None:
        """Bytes of a stored file; None for what is no file: reading a pipe would never end."""
        info = self._fs.info(path)
        return int(info["size"]) if info["type"] == "file" else None

    def list(self, prefix: str) -> list[str]:
        """Children of a folder, without files still being written."""
        path = f"{self._root}/{check_key(prefix)}"
        with self._errors(), contextlib.suppress(FileNotFoundError):
            names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(path, False))
            return sorted(name for name in names if not name.startswith("."))
        return []

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What a remote file system raises, as Refusal when it denies and OSError when it is away.

        Their libraries have errors of their own for the latter.
        """
        try:
            yield
        except (FedflowError, FileNotFoundError):
            raise
        except PermissionError as error:
            if self._local:
                raise
            what = plain_text(str(error), 200)
            raise Refusal("not-allowed", f"the object store denies it: {what}") from None
        except OSError:
            raise
        except Exception as error:
            if self._local:
                raise
            what = plain_text(str(error), 200)
            raise OSError(f"the object store is not reachable: {what}") from None


def resolve_url(url: str, folder: Path) -> str:
    """``url`` as settings in ``folder`` mean it: a plain path is relative to that folder."""
    return url if "://" in url else str(folder / url)


def open_exchange(url: str, identity: Identity | None = None) -> Exchange:
    """The exchange at ``url``: a folder path, any URL fsspec knows, or a relay's (http, https).

    A relay asks who writes: ``identity`` signs every request. An object store that is not Amazon's
    is named in the URL: ``s3://bucket/folder?endpoint_url=https://…``. InputError when unusable.
    """
    if url.startswith(("http://", "https://")):
        from fedflow.exchange.relay import RelayExchange  # httpx: not needed for folders

        return RelayExchange(url, identity)
    options: dict[str, Any] = {}
    if url.startswith("s3://"):
        url, options = _s3_options(url)
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
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


def _s3_options(url: str) -> tuple[str, dict[str, Any]]:
    """An ``s3://`` URL without its query, and what s3fs is told instead."""
    url, _, query = url.partition("?")
    try:
        given = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError:
        given = {"": ""}
    unknown = [name for name in given if name not in _S3_CLIENT_OPTIONS]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is no option of an s3 exchange; credentials come from the environment",
            field="exchange",
            allowed=", ".join(_S3_CLIENT_OPTIONS),
        )
    return url, {"client_kwargs": given, "config_kwargs": _S3_SECONDS}
