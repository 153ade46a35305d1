"""The only source of randomness in fedflow: an AES-256-CTR keystream under a secret key.

Noise, sampling, rounding and key material are only as private as their randomness is unpredictable,
so general-purpose generators (Mersenne twister, PCG64, Philox) are never used. Samples equal the
keystream read as little-endian integers, which makes every draw reproducible from a 32-byte seed in
tests. A generator seeded by the operating system reseeds in a forked child, so that two processes
never share a stream.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn, Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedflow.errors import Misuse

if sys.byteorder != "little":
    raise ImportError("fedflow reads keystreams as little-endian integers; this machine cannot")

_CHUNK = 256 * 1024
_ZEROS = bytes(_CHUNK)
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


def _process() -> tuple[int, int]:
    # The fork count also covers a grandchild that got its ancestor's process id again.
    return os.getpid(), _forks


class Csprng:
    """A cryptographically secure generator. Make one with :meth:`from_os` or :meth:`from_seed`."""

    __slots__ = ("_from_os", "_lock", "_owner", "_stream")

    def __init__(self, key: bytes, *, from_os: bool) -> None:
        if not isinstance(key, bytes) or len(key) != 32:
            raise Misuse("a generator's key has exactly 32 bytes")
        self._from_os = from_os
        self._start(key)

    def _start(self, key: bytes) -> None:
        self._lock = threading.Lock()
        self._stream: CipherContext = Cipher(AES(key), CTR(bytes(16))).encryptor()
        self._owner = _process()

    @classmethod
    def from_os(cls) -> Self:
        """Seeded with 32 bytes from the operating system; reseeds itself after a fork."""
        return cls(os.urandom(32), from_os=True)

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Deterministic from 32 bytes: for public values (initial weights) and tests only."""
        return cls(seed, from_os=False)

    def child(self, label: str) -> Csprng:
        """An independent generator keyed by fresh output of this one and ``label`` (HKDF).

        Each call consumes output: two children never share a stream, even under one label.
        """
        info = b"fedflow/1 csprng-child" + label.encode()
        key = HKDF(SHA256(), 32, salt=None, info=info).derive(self.bytes(32))
        return Csprng(key, from_os=self._from_os)

    def __repr__(self) -> str:
        return f"Csprng(<secret>, {'from_os' if self._from_os else 'from_seed'})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise Misuse("a generator is not copied or pickled: both copies would draw the same stream")

    def _fill(self, out: NDArray[np.uint8]) -> None:
        if self._from_os and self._owner != _process():
            self._start(os.urandom(32))
        view = out.data
        with self._lock:
            for at in range(0, len(view), _CHUNK):
                part = view[at : at + _CHUNK]
                self._stream.update_into(_ZEROS[: len(part)], part)

    def _array(self, n: int, width: int) -> NDArray[np.uint8]:
        if n < 0:
            raise Misuse("cannot draw a negative number of values")
        out = np.empty(n * width, np.uint8)
        if n:
            self._fill(out)
        return out

    def bytes(self, n: int) -> bytes:
        """``n`` random bytes."""
        return self._array(n, 1).tobytes()

    def uint32(self, n: int) -> NDArray[np.uint32]:
        """``n`` uniform integers in [0, 2^32), shape [n]."""
        return self._array(n, 4).view(np.uint32)

    def uint64(self, n: int) -> NDArray[np.uint64]:
        """``n`` uniform integers in [0, 2^64), shape [n]."""
        return self._array(n, 8).view(np.uint64)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """``n`` uniform multiples of 2^-53 in [0, 1), shape [n]."""
        return (self.uint64(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53
