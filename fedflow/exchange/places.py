"""Which place of the layout a name is: the reverse of :mod:`fedflow.exchange.layout`.

A name that is none is no place; there is exactly one name for each. The relay decides by the place
who may write there and how much.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from fedflow.exchange import layout
from fedflow.secagg.vectors import CHUNK_WORDS


class Kind(Enum):
    """What is kept at a place."""

    ROSTER = "roster"
    MANIFEST = "manifest"
    COUNTERSIGN = "countersign"
    HELLO = "hello"
    ORDER = "order"
    UP = "up"
    DECLINE = "decline"
    VECTOR = "vector"
    DOWN = "down"
    DELIVERY = "delivery"
    SUM = "sum"
    TRANSCRIPT = "transcript"
    END = "end"
    BLOB = "blob"


#: What a site puts, under its own index; what the coordinator of the job puts.
OF_SITE = {Kind.COUNTERSIGN, Kind.HELLO, Kind.UP, Kind.DECLINE, Kind.VECTOR}
OF_COORDINATOR = {Kind.ORDER, Kind.DOWN, Kind.DELIVERY, Kind.SUM, Kind.TRANSCRIPT, Kind.END}


@dataclass(frozen=True)
class Place:
    """One object's place. ``site`` is the index it belongs to, ``digest`` that of a blob (hex)."""

    kind: Kind
    job: str = ""
    sequence: int = 0
    site: int | None = None
    digest: str = ""


_JOB = r"jobs/(?P<job>[a-z0-9][a-z0-9-]{0,62})"
_ROUND = _JOB + r"/rounds/(?P<sequence>[0-9]{6})"
_SITE = r"(?P<site>0|[1-9][0-9]{0,4})"
_CHUNK = r"(?:0|[1-9][0-9]{0,4})"
_LEGS_UP = "advert|shares|masked|signed|unmask"
_LEGS_DOWN = "roster|survivors|consistency"
_PLACES = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (Kind.UP, rf"{_ROUND}/up/(?:{_LEGS_UP})/{_SITE}"),
        (Kind.VECTOR, rf"{_ROUND}/up/vector/{_SITE}/{_CHUNK}"),
        (Kind.DOWN, rf"{_ROUND}/down/(?:{_LEGS_DOWN})/all"),
        (Kind.DELIVERY, rf"{_ROUND}/down/delivery/{_SITE}"),
        (Kind.DECLINE, rf"{_ROUND}/up/decline/{_SITE}"),
        (Kind.ORDER, rf"{_ROUND}/order"),
        (Kind.SUM, rf"{_ROUND}/sum/{_CHUNK}"),
        (Kind.TRANSCRIPT, rf"{_ROUND}/transcript"),
        (Kind.BLOB, rf"{_JOB}/blobs/(?P<digest>[0-9a-f]{{64}})"),
        (Kind.HELLO, rf"{_JOB}/hello/{_SITE}-[0-9a-f]{{16}}"),
        (Kind.COUNTERSIGN, rf"{_JOB}/countersign/{_SITE}"),
        (Kind.MANIFEST, rf"{_JOB}/manifest"),
        (Kind.END, rf"{_JOB}/end"),
        (Kind.ROSTER, r"federation/roster/(?P<sequence>[0-9]{6})"),
    )
)
_FOLDER = re.compile(
    rf"federation|federation/roster|jobs|{_JOB}(?:/(?:countersign|hello|blobs|rounds(?:/[0-9]{{6}}"
    rf"(?:/(?:sum|up(?:/(?:{_LEGS_UP}|decline|vector(?:/{_CHUNK})?))?"
    rf"|down(?:/(?:{_LEGS_DOWN}|delivery))?))?)?))?"
)


def place(key: str) -> Place | None:
    """The place that ``key`` names; None when it names none."""
    for kind, pattern in _PLACES:
        found = pattern.fullmatch(key)
        if found is not None:
            named = found.groupdict()
            site = named.get("site")
            return Place(
                kind,
                named.get("job") or "",
                int(named.get("sequence") or 0),
                None if site is None else int(site),
                named.get("digest") or "",
            )
    return None


def folder(prefix: str) -> str | None:
    """The job of a folder of the layout, ``""`` for one above all jobs; None for no such folder."""
    found = _FOLDER.fullmatch(prefix)
    return None if found is None else found["job"] or ""


def size_limit(kind: Kind, sites: int) -> int:
    """The largest object at a place of ``kind`` in a job of ``sites`` sites (bytes)."""
    if kind in (Kind.UP, Kind.DOWN, Kind.DELIVERY):
        return layout.leg_limit(sites)
    return {
        Kind.ROSTER: layout.MAX_ROSTER_BYTES,
        Kind.MANIFEST: layout.MAX_MANIFEST_BYTES,
        Kind.VECTOR: 4 * CHUNK_WORDS,
        Kind.SUM: 4 * CHUNK_WORDS,
        Kind.TRANSCRIPT: layout.transcript_limit(sites),
        Kind.BLOB: layout.MAX_MODEL_BYTES,
    }.get(kind, layout.MAX_SEALED_BYTES)
