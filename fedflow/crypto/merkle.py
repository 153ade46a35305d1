"""Merkle trees (RFC 6962, section 2.1): one signature over a list, checkable item by item.

A dealer signs one root over all its encrypted shares; each recipient gets its own share with a path
of about ``log2(n)`` hashes and can prove to anyone which ciphertext the dealer signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedflow.errors import Misuse, Violation


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


class MerkleTree:
    """The tree over at least one byte string."""

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not leaves:
            raise Misuse("a Merkle tree needs at least one leaf")
        level = [_leaf(data) for data in leaves]
        self._levels = [level]
        while len(level) > 1:
            pairs = [_node(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
            level = pairs + level[2 * len(pairs) :]
            self._levels.append(level)

    @property
    def root(self) -> bytes:
        """32-byte root."""
        return self._levels[-1][0]

    def path(self, position: int) -> tuple[bytes, ...]:
        """The sibling hashes from leaf ``position`` up to the root."""
        out = []
        for level in self._levels[:-1]:
            if position ^ 1 < len(level):
                out.append(level[position ^ 1])
            position >>= 1
        return tuple(out)


def root_of(leaf: bytes, position: int, count: int, path: Sequence[bytes]) -> bytes:
    """The root that ``path`` proves for ``leaf`` at ``position`` of ``count``.

    Violation ``bad-path`` when the path has not exactly the length that position and count need.
    """
    if not 0 <= position < count:
        raise Misuse("the position is outside the tree")
    node, siblings = _leaf(leaf), iter(path)
    try:
        while count > 1:
            if position ^ 1 < count:
                other = next(siblings)
                node = _node(other, node) if position & 1 else _node(node, other)
            position, count = position >> 1, (count + 1) >> 1
    except StopIteration:
        raise Violation("bad-path", "the Merkle path is too short") from None
    if next(siblings, None) is not None:
        raise Violation("bad-path", "the Merkle path is too long")
    return node
