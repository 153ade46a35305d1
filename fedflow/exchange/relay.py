"""The exchange behind an HTTP relay: every request signed by the member that makes it."""

from __future__ import annotations

from fedflow.crypto.identity import Identity
from fedflow.errors import InputError
from fedflow.exchange.base import MAX_OBJECT_BYTES


class RelayExchange:
    """A relay's mailbox."""

    remote = True

    def __init__(self, url: str, identity: Identity | None) -> None:
        raise InputError("relays are not supported yet", field="exchange", allowed="a folder")

    def put(self, key: str, payload: bytes) -> None:
        """Store once."""

    def get(self, key: str, limit: int = MAX_OBJECT_BYTES) -> bytes | None:
        """Read back."""

    def list(self, prefix: str) -> list[str]:
        """Children of a folder."""
        return []
