"""Passphrases of key files, and fingerprints as people type them."""

from __future__ import annotations

import hmac
import os
import re

from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Refusal
from fedflow.settings_file import read_text

PASSPHRASE_VARIABLE = "FEDFLOW_KEY_PASSPHRASE"  # noqa: S105  (a name, not a value)
#: Names a file with it: a service manager's credential or a container's secret.
PASSPHRASE_FILE_VARIABLE = "FEDFLOW_KEY_PASSPHRASE_FILE"  # noqa: S105


def passphrase() -> bytes | None:
    """What protects key files, from the operator's environment; None for nothing."""
    if name := os.environ.get(PASSPHRASE_FILE_VARIABLE):
        value = read_text(name).rstrip("\r\n")
        if not value:
            raise InputError("holds no passphrase", where=name, field=PASSPHRASE_FILE_VARIABLE)
        return value.encode()
    value = os.environ.get(PASSPHRASE_VARIABLE, "")
    return value.encode() or None


def read_fingerprint(text: str, *, field: str) -> str:
    """A fingerprint as someone typed it, as 32 hex digits; InputError for anything else."""
    digits = re.sub(r"[\s:-]", "", text).lower()
    if not re.fullmatch("[0-9a-f]{32}", digits):
        raise InputError(
            "this is not a whole fingerprint",
            field=field,
            allowed="eight groups of four hex digits, as `fedflow` prints them",
        )
    return digits


def check_fingerprint(text: str, key: PublicKey, *, field: str, whose: str) -> None:
    """Refusal ``fingerprint-mismatch`` unless ``text`` is the fingerprint of ``key``."""
    if not hmac.compare_digest(
        read_fingerprint(text, field=field), key.fingerprint().replace(" ", "")
    ):
        raise Refusal(
            "fingerprint-mismatch",
            f"the fingerprint you gave is not that of {whose}, which is {key.fingerprint()}:"
            " somebody may have exchanged a file on its way. Ask for it again, by phone",
        )
