"""The frame around every stored object: a truncated or damaged object is recognised as such.

``"FFX1" ‖ u64 length ‖ SHA-256(payload) ‖ payload``. This detects accidents; forgery is detected by
the signatures and digests inside.
"""

from __future__ import annotations

import hashlib

from fedflow.errors import Violation

MAGIC = b"FFX1"
HEADER = len(MAGIC) + 8 + 32


def frame(payload: bytes) -> bytes:
    """Wrap ``payload`` for storage."""
    return MAGIC + len(payload).to_bytes(8, "big") + hashlib.sha256(payload).digest() + payload


def unframe(data: bytes) -> bytes:
    """The payload of a stored object; Violation when it is truncated, damaged or foreign."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise Violation("not-an-object", "stored object does not start with the fedflow frame")
    if len(data) < HEADER:
        raise Violation("truncated", "stored object ends inside its header")
    size = int.from_bytes(data[4:12], "big")
    payload = data[HEADER:]
    if len(payload) < size:
        raise Violation("truncated", f"stored object has {len(payload)} of its {size} bytes")
    if len(payload) > size:
        raise Violation("trailing-bytes", "stored object has bytes after its end")
    if hashlib.sha256(payload).digest() != data[12:HEADER]:
        raise Violation("damaged", "stored object does not match its checksum")
    return payload
