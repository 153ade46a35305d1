"""Ed25519 identities (RFC 8032): who signed what.

Signed bytes are ``"fedflow/1 " + label + 0x00 + body``. The label says what kind of statement is
signed, so a signature made for one purpose can never be shown for another. Private keys are made on
the machine that uses them and leave it only as a PKCS#8 PEM file, mode 0600.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedflow.errors import InputError, Misuse, Violation

SIGNATURE_SIZE = 64
_PREFIX = b"fedflow/1 "
_MAX_PEM = 16 * 1024


def signed_bytes(label: str, body: bytes) -> bytes:
    """What a signature under ``label`` covers. Misuse unless the label is plain printable ASCII."""
    if not label or not label.isascii() or not label.isprintable():
        raise Misuse(f"signing label {label!r} must be printable ASCII")
    return _PREFIX + label.encode() + b"\0" + body


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key: 32 raw bytes. Equal and hashable by value."""

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.raw, bytes) or len(self.raw) != 32:
            raise Violation("bad-public-key", "an Ed25519 public key has exactly 32 bytes")

    def __repr__(self) -> str:
        return f"PublicKey({self.fingerprint()})"

    def verify(self, label: str, body: bytes, signature: bytes) -> None:
        """Return when ``signature`` (64 bytes) is valid; Violation ``bad-signature`` otherwise."""
        message = signed_bytes(label, body)
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError, TypeError):
            raise Violation(
                "bad-signature", f"the signature under '{label}' is not by {self.fingerprint()}"
            ) from None

    def fingerprint(self) -> str:
        """First 128 bits of SHA-256 of the key: eight groups of four hex digits, to read aloud."""
        digits = hashlib.sha256(b"fedflow/1 fingerprint\0" + self.raw).hexdigest()
        return " ".join(digits[i : i + 4] for i in range(0, 32, 4))

    def hex(self) -> str:
        """The key as 64 lower-case hex digits."""
        return self.raw.hex()

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Read :meth:`hex` back; Violation for anything but 64 lower-case hex digits."""
        if len(text) != 64 or set(text) - set("0123456789abcdef"):
            raise Violation("bad-public-key", "a public key is written as 64 lower-case hex digits")
        return cls(bytes.fromhex(text))


class Identity:
    """A private signing key and its public half. Not picklable, redacted when shown."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(
            key.public_key().public_bytes(
                serialization.Encoding.Raw, serialization.PublicFormat.Raw
            )
        )

    def __repr__(self) -> str:
        return f"Identity(<secret>, {self.public.fingerprint()})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise Misuse("an identity is not copied or pickled; save() it to a file")

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    def sign(self, label: str, body: bytes) -> bytes:
        """64-byte signature over ``"fedflow/1 " + label + 0x00 + body``."""
        return self._key.sign(signed_bytes(label, body))

    def save(self, path: str | Path, passphrase: bytes | None = None) -> None:
        """Write PKCS#8 PEM, mode 0600, durable. InputError when ``path`` exists already."""
        if passphrase is not None and not passphrase:
            raise InputError("the passphrase is empty", where=str(path))
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()
            if passphrase is None
            else serialization.BestAvailableEncryption(passphrase),
        )
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise InputError(
                "a file is already here; an identity is never overwritten", where=str(path)
            ) from None
        except OSError as error:
            raise InputError(
                f"cannot write the identity: {error.strerror}", where=str(path)
            ) from None
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            file.write(pem)
            file.flush()
            os.fsync(fd)

    @classmethod
    def load(cls, path: str | Path, passphrase: bytes | None = None) -> Self:
        """Read what :meth:`save` wrote; InputError saying what is wrong with the file otherwise."""
        where = str(path)
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if mode & 0o077:
                    raise InputError(
                        f"the private key is open to other users (mode {mode & 0o777:04o});"
                        f" run: chmod 600 '{where}'",
                        where=where,
                    )
                pem = file.read(_MAX_PEM + 1)
        except OSError as error:
            raise InputError(f"cannot read the identity: {error.strerror}", where=where) from None
        try:
            if len(pem) > _MAX_PEM:
                raise ValueError
            key = serialization.load_pem_private_key(pem, passphrase)
        except TypeError:
            hint = "needs a passphrase" if passphrase is None else "has no passphrase, none is due"
            raise InputError(f"the private key {hint}", where=where) from None
        except (ValueError, UnsupportedAlgorithm):
            raise InputError(
                "not a private key in PKCS#8 PEM form, or the passphrase is wrong", where=where
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError("the private key is not an Ed25519 key", where=where)
        return cls(key)
