"""The keys an auditor pins before looking at anything else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Violation
from fedflow.wire.messages import LABEL, MAX_SITES

MAX_ROSTER_BYTES = 1 << 20
MAX_EARLIER = 1000


@dataclass(frozen=True)
class PinnedRoster:
    """Authority, coordinator and sites, as the auditor knows them. Keys by site index.

    ``earlier`` are keys that a site had before, whose ledger it has continued.
    """

    authority: PublicKey
    coordinator: PublicKey
    keys: dict[int, PublicKey]
    labels: dict[int, str]
    earlier: dict[int, tuple[PublicKey, ...]] = field(default_factory=dict)

    def all_keys(self, site: int) -> tuple[PublicKey, ...]:
        """Every key of a site: the one it has now, then those it had before."""
        return (self.keys[site], *self.earlier.get(site, ()))


def load_roster(path: Path) -> PinnedRoster:
    """Read ``roster.json``: authority, coordinator, and sites with index, label and public_key.

    A site whose key was replaced lists those it had before as ``earlier_keys``. Keys are hex. The
    file is only as trustworthy as the way it reached the auditor: compare its fingerprints with
    those the sites' operators read out. Raises InputError.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would never end
            raise InputError("this is not a file", where=str(path), allowed="a roster.json")
        with open(path, "rb") as file:
            data = file.read(MAX_ROSTER_BYTES + 1)
        if len(data) > MAX_ROSTER_BYTES:
            raise InputError("the file is too large for a roster", where=str(path))
        return _parse(json.loads(data))
    except OSError as error:
        raise InputError(
            f"the pinned keys cannot be read: {error.strerror}",
            where=str(path),
            allowed="a roster.json with the keys of authority, coordinator and sites",
        ) from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, Violation) as error:
        raise InputError(f"this is not a roster ({error})", where=str(path)) from None


def _parse(raw: Any) -> PinnedRoster:
    if set(raw) != {"authority", "coordinator", "sites"}:
        raise ValueError("it needs exactly authority, coordinator and sites")
    keys: dict[int, PublicKey] = {}
    labels: dict[int, str] = {}
    earlier: dict[int, tuple[PublicKey, ...]] = {}
    known: set[PublicKey] = set()
    for site in raw["sites"]:
        if set(site) - {"earlier_keys"} != {"index", "label", "public_key"}:
            raise ValueError("a site needs exactly index, label and public_key")
        index, label = site["index"], site["label"]
        if type(index) is not int or not 0 <= index < 1 << 16 or index in keys:
            raise ValueError(f"site index {index!r} is not a number of its own")
        if not isinstance(label, str) or not LABEL.fullmatch(label) or label in labels.values():
            raise ValueError(f"site label {label!r} is not a name of its own")
        key = PublicKey.from_hex(site["public_key"])
        before = site.get("earlier_keys", [])
        if not isinstance(before, list) or len(before) > MAX_EARLIER:
            raise ValueError(f"site {label} has no list of at most {MAX_EARLIER} earlier keys")
        keys[index], labels[index] = key, label
        earlier[index] = tuple(PublicKey.from_hex(text) for text in before)
        own = (key, *earlier[index])
        if len(set(own)) != len(own) or known & set(own):
            raise ValueError(f"site {label} has a key twice, or the key of another site")
        known.update(own)
    if not 1 <= len(keys) <= MAX_SITES:
        raise ValueError(f"{len(keys)} sites, allowed are 1 to {MAX_SITES}")
    authority = PublicKey.from_hex(raw["authority"])
    return PinnedRoster(authority, PublicKey.from_hex(raw["coordinator"]), keys, labels, earlier)
