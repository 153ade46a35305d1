"""The exported ledgers of an audited folder: whose each file is, and whether a site told one story.

Any file ``audit/ledgers/*.jsonl`` may be a ledger. One named after a site is read with that site's
key, or with one it had before; any other with the key that signed its first line. A site may be
there several times: exports of different days, or one that another party kept. Each is a prefix of
the longest, or the site has signed two histories.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from fedflow.audit.findings import Recorder
from fedflow.audit.roster import PinnedRoster
from fedflow.crypto.identity import PublicKey
from fedflow.errors import FedflowError, InputError
from fedflow.privacy.chain import Chain
from fedflow.privacy.entries import Entry, Opened, read_entry
from fedflow.privacy.export import MAX_LINE, ExportReading, first_key_in, read_export

_CHAINED = ("seq", "previous")


@dataclass
class SiteLedger:
    """One site's verified entries: of several exports the longest."""

    site: int
    label: str
    where: str
    chain: Chain


def read_ledgers(folder: Path, roster: PinnedRoster, recorder: Recorder) -> dict[int, SiteLedger]:
    """Every exported ledger of the roster's sites, verified entry by entry, one per site."""
    copies: dict[int, list[SiteLedger]] = {site: [] for site in roster.labels}
    named = {f"{label}.jsonl": site for site, label in roster.labels.items()}
    strays = []
    for path in _files(folder, recorder):
        site = named.get(path.name)
        where = path.name if site is None else f"ledger of {roster.labels[site]}"
        with recorder.examining("ledger", where, 0):
            if site is None:
                site = _signer(path, roster)
                if site is None:
                    strays.append(path.name)
                    continue
                where = f"ledger of {roster.labels[site]} ({path.name})"
            copies[site].append(_read(path, site, where, roster, recorder))
    for name in strays:
        recorder.warn("stray-ledger", "This ledger is of no pinned site.", name)
    ledgers = {}
    for site, found in copies.items():
        label = roster.labels[site]
        if not found:
            recorder.note("no-ledger", f"The ledger of {label} is not here.", f"ledger of {label}")
            continue
        # of equally long ones the one under the site's own name
        ledgers[site] = max(found, key=lambda one: (len(one.chain.entries), -len(one.where)))
        _compare(ledgers[site], found, recorder)
    return ledgers


def _files(folder: Path, recorder: Recorder) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if name.endswith(".jsonl"))
    except FileNotFoundError:
        return []
    except OSError as error:
        sentence = f"The folder of ledgers cannot be read: {error.strerror}."
        recorder.error("ledger", "bad-input", sentence, str(folder))
        return []


def _read(
    path: Path, site: int, where: str, roster: PinnedRoster, recorder: Recorder
) -> SiteLedger:
    if not path.is_file():  # reading a pipe would never end
        raise InputError("it is not a file", where=path.name)
    label = roster.labels[site]
    reading = _reading(path, roster.all_keys(site))
    recorder.count("ledger", len(reading.chain.entries))
    for found in reading.findings:
        at = where if found.entry is None else f"{where}, entry {found.entry}"
        sentence = f"Ledger of {label}: {found.sentence}."
        recorder.error("ledger", found.code, sentence, at)
    for entry in reading.chain.entries:
        if isinstance(entry, Opened) and entry.label != label:
            sentence = f"The ledger of {label} calls its site {entry.label}."
            recorder.warn("other-label", sentence, f"{where}, entry {entry.seq}")
    _check_keys(reading.chain, site, where, roster, recorder)
    return SiteLedger(site, label, where, reading.chain)


def _check_keys(
    chain: Chain, site: int, where: str, roster: PinnedRoster, recorder: Recorder
) -> None:
    """A ledger goes on under a pinned key: whoever stole an old one would name one of their own."""
    label, pinned = roster.labels[site], roster.all_keys(site)
    if not chain.entries or chain.key in pinned:
        return
    now = f"The ledger of {label} goes on under {chain.key.fingerprint()}, which is not pinned"
    if pinned[0] in chain.keys:
        recorder.warn("unpinned-key", f"{now}: it took over from the key that is.", where)
    else:
        sentence = f"{now}: an earlier key of {label} named it, not the one it has now."
        recorder.error("ledger", "unpinned-key", sentence, where)


def _reading(path: Path, keys: Iterable[PublicKey]) -> ExportReading:
    """Read an export with the first of a site's keys, newest first, that the ledger has had.

    An export from before the key was replaced ends under an old one. With none, as by the newest.
    """
    readings = []
    for key in keys:
        readings.append(read_export(path, key))
        if readings[-1].chain.entries or not readings[-1].findings:
            return readings[-1]
    return readings[0]


def _signer(path: Path, roster: PinnedRoster) -> int | None:
    """The site whose key signed the file's first entry; None when none of the roster's did."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            line = file.readline(MAX_LINE + 1)
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}", where=path.name) from None
    if first_key_in(line) is not None:  # several keys: whose they are, the whole file tells
        own = (
            site
            for site in roster.keys
            if _reading(path, roster.all_keys(site)).chain.entries  # none of another's
        )
        return next(own, None)
    try:
        data = bytes.fromhex(json.loads(line)["entry"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    for site in roster.keys:
        for key in roster.all_keys(site):
            try:
                read_entry(data, key)
            except FedflowError:
                continue
            return site
    return None


def _compare(longest: SiteLedger, copies: Iterable[SiteLedger], recorder: Recorder) -> None:
    """Every other copy is a prefix of the longest; what is not is a second history."""
    main = _hashes(longest.chain)
    for copy in copies:
        if copy is longest:
            continue
        other = _hashes(copy.chain)
        parting = next((i for i, (a, b) in enumerate(zip(main, other, strict=False)) if a != b), -1)
        if parting >= 0:
            difference = _difference(longest.chain.entries[parting], copy.chain.entries[parting])
            sentence = (
                f"{copy.label} signed two histories: they agree up to entry {parting} and part "
                f"there ({difference}). One of them was shown to somebody and then denied."
            )
            at = f"{longest.where}, entry {parting}; {copy.where}, entry {parting}"
            recorder.error("ledger", "two-histories", sentence, at)
        elif len(other) < len(main):
            sentence = (
                f"An earlier export of {copy.label} agrees with the longest: its "
                f"{len(other)} entries are the first of {len(main)}."
            )
            recorder.note("earlier-export", sentence, copy.where)


def _hashes(chain: Chain) -> list[bytes]:
    """The hash of every entry, oldest first."""
    entries = chain.entries
    return [e.previous for e in entries[1:]] + ([chain.head] if entries else [])


def _difference(one: Entry, other: Entry) -> str:
    if type(one) is not type(other):
        return f"one has {_kind(one)} there, the other {_kind(other)}"
    names = [f.name for f in fields(one) if f.name not in _CHAINED]
    wrong = [name for name in names if getattr(one, name) != getattr(other, name)]
    return f"two entries of {_kind(one)}: {', '.join(wrong) or 'signature'}"


def _kind(entry: Entry) -> str:
    return {
        "open": "an account",
        "reserve": "a charge",
        "settle": "a settlement",
        "rotate": "a new key",
    }.get(entry.kind, "a plan's charge")
