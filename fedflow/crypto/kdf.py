"""Labelled key derivation: HKDF-SHA256 (RFC 5869) with the round's context as salt.

Every key names its purpose and the sites it belongs to, and every key depends on the whole context:
two rounds, two rosters or two models never share a key. Site indices enter as ``u16`` big-endian.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedflow.errors import Misuse

KEY_SIZE = 32
CONTEXT_SIZE = 32


def derive(secret: bytes, context: bytes, label: str, *sites: int) -> bytes:
    """32 bytes: HKDF(ikm=secret, salt=context, info="fedflow/1 " ‖ label ‖ u16 sites...)."""
    if len(secret) != KEY_SIZE or len(context) != CONTEXT_SIZE:
        raise Misuse("key derivation takes a secret and a context of 32 bytes each")
    info = b"fedflow/1 " + label.encode() + b"".join(site.to_bytes(2, "big") for site in sites)
    return HKDF(SHA256(), KEY_SIZE, salt=context, info=info).derive(secret)


def self_mask_key(seed: bytes, context: bytes, site: int) -> bytes:
    """Key of the mask that ``site`` adds alone, from its 32-byte seed."""
    return derive(seed, context, "self-mask", site)


def pair_mask_key(shared: bytes, context: bytes, a: int, b: int) -> bytes:
    """Key of the mask that sites ``a`` and ``b`` cancel between them: the same in either order."""
    return derive(shared, context, "pair-mask", min(a, b), max(a, b))


def share_key(shared: bytes, context: bytes, dealer: int, recipient: int) -> bytes:
    """Key under which ``dealer`` encrypts its one message to ``recipient``. Directional."""
    return derive(shared, context, "share-aead", dealer, recipient)
