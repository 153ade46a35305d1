"""Authenticated encryption under keys that encrypt exactly one message.

ChaCha20-Poly1305 (RFC 8439) with an all-zero nonce: safe only because each key is derived for one
dealer, one recipient and one context, and the dealer seals once.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedflow.errors import Violation

TAG_SIZE = 16
_NONCE = bytes(12)


def seal_once(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Encrypt the only message ``key`` (32 bytes) ever carries; 16 bytes longer than it."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, plaintext, associated)


def open_sealed(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The plaintext; Violation ``bad-ciphertext`` when anything was changed."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, associated)
    except InvalidTag:
        raise Violation("bad-ciphertext", "the encrypted share does not open") from None
