"""Mask expansion: AES-256-CTR keystreams added to a vector modulo 2^32.

Mask word ``i`` under a key is bytes ``4i..4i+3`` of its keystream (counter from zero), read
little-endian. Work goes in blocks of 256 KiB so that vector block and keystream stay in cache. CTR
is seekable, so a coordinate range can be expanded alone, which is how threads share the work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from fedflow.errors import Misuse

if sys.byteorder != "little":
    raise ImportError("masks are little-endian words; this machine is big-endian")

CHUNK_BYTES = 256 * 1024
CHUNK_WORDS = CHUNK_BYTES // 4
WORDS_PER_BLOCK = 4
MAX_WORDS = 1 << 34  # 2^32 AES blocks: the most that one key may produce
_ZEROS = memoryview(bytes(CHUNK_BYTES))


def add_masks(
    vector: NDArray[np.uint32],
    keys: Sequence[bytes],
    signs: Sequence[int],
    start: int = 0,
    threads: int = 1,
) -> None:
    """Add (sign +1) or subtract (sign -1) the mask of every key to ``vector`` in place, mod 2^32.

    ``vector`` is writable contiguous uint32 [n] and stands for words ``start .. start+n`` of the
    whole; ``start`` is a multiple of 4. Misuse for anything else.
    """
    if vector.dtype != np.uint32 or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise Misuse("masks are added to a contiguous one-dimensional uint32 vector")
    if len(keys) != len(signs) or not all(s in (1, -1) for s in signs):
        raise Misuse("every mask key needs a sign of +1 or -1")
    if start < 0 or start % WORDS_PER_BLOCK or start + vector.size > MAX_WORDS:
        raise Misuse(f"masks start at a multiple of 4 words and end by word {MAX_WORDS}")
    chunks = -(-vector.size // CHUNK_WORDS)
    threads = max(1, min(threads, chunks))
    if threads == 1:
        _add(vector, keys, signs, start)
        return
    step = -(-chunks // threads) * CHUNK_WORDS
    with ThreadPoolExecutor(threads) as pool:
        parts = [
            pool.submit(_add, vector[at : at + step], keys, signs, start + at)
            for at in range(0, vector.size, step)
        ]
        for part in parts:
            part.result()


def _add(
    vector: NDArray[np.uint32], keys: Sequence[bytes], signs: Sequence[int], start: int
) -> None:
    counter = (start // WORDS_PER_BLOCK).to_bytes(16, "big")
    streams = [Cipher(AES(key), CTR(counter)).encryptor().update_into for key in keys]
    operations = [np.add if sign > 0 else np.subtract for sign in signs]
    words = np.empty(min(CHUNK_WORDS, vector.size), np.uint32)
    raw = words.data.cast("B")
    for at in range(0, vector.size, CHUNK_WORDS):
        part = vector[at : at + CHUNK_WORDS]
        mask, zeros, out = words[: part.size], _ZEROS[: part.nbytes], raw[: part.nbytes]
        for stream, operate in zip(streams, operations, strict=True):
            stream(zeros, out)
            operate(part, mask, out=part)
    words.fill(0)
