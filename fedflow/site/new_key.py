"""A site's key and the one that is to replace it.

::

    identity.pem         the key the site has
    identity.next.pem    the key it asked for; there until it is active

Replacing has three durable steps, in this order: the ledger's entry, by which the budget goes on;
what is remembered of the ledger, under the new key; the new key's file in the old one's place. The
first one decides. A site that was stopped in between finds the ledger under the new key, and its
next start finishes the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from fedflow.anchors import Anchors
from fedflow.crypto.identity import Identity
from fedflow.errors import InputError, Refusal
from fedflow.federation.keys import passphrase
from fedflow.privacy.ledger import Ledger
from fedflow.site.durable import sync_folder

KEY, NEXT = "identity.pem", "identity.next.pem"


def load_key(path: Path) -> Identity:
    """The key of the site in ``path``, after finishing a replacement that was interrupted."""
    if (path / NEXT).exists() and (path / "ledger.sqlite").exists():
        with contextlib.suppress(FileNotFoundError):
            _finish_if_begun(path)
    return Identity.load(path / KEY, passphrase())


def next_key(path: Path) -> Identity | None:
    """The key the site has asked for; None when it has not."""
    return Identity.load(path / NEXT, passphrase()) if (path / NEXT).exists() else None


def make_next_key(path: Path) -> Identity:
    """The key to ask for: made here, once; the same one when asked for again."""
    made = next_key(path)
    if made is None:
        aside = path / f".{NEXT}.{os.getpid()}"
        made = Identity.generate()
        made.save(aside, passphrase())
        os.rename(aside, path / NEXT)
        sync_folder(path)
    return made


def activate(path: Path) -> Identity:
    """Make the key that was asked for the site's key. Nobody else may use the folder meanwhile."""
    old, new = load_key(path), next_key(path)
    if new is None:
        raise Refusal(
            "no-new-key", f"{path} has not asked for a new key: `fedflow site rotate-key`"
        )
    ledger = Ledger.open(path / "ledger.sqlite", old)
    try:
        ledger.rotate(new)
    finally:
        ledger.close()
    _finish(path, new)
    return new


def _finish_if_begun(path: Path) -> None:
    ledger = Ledger.open(path / "ledger.sqlite", None)
    now = ledger.key
    ledger.close()
    new = next_key(path)
    if new is not None and now == new.public:
        _finish(path, new)


def _finish(path: Path, new: Identity) -> None:
    """What follows once the ledger goes on under ``new``; may be done again."""
    ledger = Ledger.open(path / "ledger.sqlite", new.public)
    keys = ledger.keys
    ledger.close()
    if len(keys) < 2 or keys[-1] != new.public:
        raise InputError("the ledger does not go on under the new key", where=str(path))
    Anchors(path / "anchors.sqlite").succeed(itertools.pairwise(keys))
    with contextlib.suppress(FileNotFoundError):  # another process has finished it
        os.replace(path / NEXT, path / KEY)
    sync_folder(path)
