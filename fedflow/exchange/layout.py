"""Where things are in the exchange. One place, so that writers, readers and auditors agree.

::

    jobs/<job>/manifest                        Sealed Manifest, by the authority
    jobs/<job>/countersign/<site>              Sealed Countersignature
    jobs/<job>/hello/<site>-<session>          Sealed Hello, one per start of the site
    jobs/<job>/rounds/<sequence>/order         Sealed Order, by the coordinator
    jobs/<job>/rounds/<sequence>/up/<leg>/<site>     secure-aggregation message, or Decline
    jobs/<job>/rounds/<sequence>/up/vector/<site>/<index>  a chunk of the site's masked vector,
                                                     before the header up/masked/<site>
    jobs/<job>/rounds/<sequence>/down/<leg>/<site>   or .../all
    jobs/<job>/rounds/<sequence>/sum/<index>   a chunk of the opened sum, before the transcript
    jobs/<job>/rounds/<sequence>/transcript    Sealed transcript, by the coordinator
    jobs/<job>/end                             Sealed JobEnd
    jobs/<job>/blobs/<sha256>                  model files (safetensors), named by their digest
    federation/roster/<serial>                 Sealed FederationRoster, by the authority
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Largest objects a reader accepts (bytes): model files, manifests, small signed messages.
MAX_MODEL_BYTES = 1 << 30
MAX_MANIFEST_BYTES = 1 << 21
MAX_SEALED_BYTES = 1 << 16
#: The largest sealed list of members (bytes).
MAX_ROSTER_BYTES = 8 << 20

#: What one site adds to the largest message of a leg, in the suite with the largest keys (bytes).
_SITE_BYTES = 4096
#: What one pair of a dropped site and a survivor adds to a transcript, and how many there can be.
_PAIR_BYTES, _MOST_PAIRS = 3072, 1 << 17
#: Hashes of the chunks of the longest vector, and what is left.
_BASE_BYTES = 1 << 18


def leg_limit(sites: int) -> int:
    """The largest message of one leg, among ``sites`` in the job's roster (bytes)."""
    return _BASE_BYTES + _SITE_BYTES * sites


def transcript_limit(sites: int) -> int:
    """The largest sealed transcript, among ``sites`` in the job's roster (bytes)."""
    return leg_limit(sites) + _PAIR_BYTES * min(sites * sites, _MOST_PAIRS)


def job(job_id: str) -> str:
    """The root of a job."""
    return f"jobs/{job_id}"


def manifest(job_id: str) -> str:
    """The signed manifest."""
    return f"{job(job_id)}/manifest"


def countersign(job_id: str, site: int) -> str:
    """A site's counter-signature."""
    return f"{job(job_id)}/countersign/{site}"


def hellos(job_id: str) -> str:
    """The folder of presence messages."""
    return f"{job(job_id)}/hello"


def hello(job_id: str, site: int, session: bytes) -> str:
    """One start of a site: index and the first 8 bytes of its session value."""
    return f"{hellos(job_id)}/{site}-{session[:8].hex()}"


def rounds(job_id: str) -> str:
    """The folder of all orders and what answered them."""
    return f"{job(job_id)}/rounds"


def sequences(names: Iterable[str]) -> list[int]:
    """The order numbers among names listed in :func:`rounds`, ascending; others are ignored."""
    return sorted(int(name) for name in names if re.fullmatch("[0-9]{6}", name))


def order(job_id: str, sequence: int) -> str:
    """The signed order."""
    return f"{rounds(job_id)}/{sequence:06d}/order"


def ups(job_id: str, sequence: int, leg: str) -> str:
    """The folder of one leg's messages, each named by its site."""
    return f"{rounds(job_id)}/{sequence:06d}/up/{leg}"


def up(job_id: str, sequence: int, leg: str, site: int) -> str:
    """A message of a site, for one leg."""
    return f"{ups(job_id, sequence, leg)}/{site}"


def vectors(job_id: str, sequence: int) -> str:
    """The folder of masked vectors: one folder of chunks per site."""
    return f"{rounds(job_id)}/{sequence:06d}/up/vector"


def vector(job_id: str, sequence: int, site: int, index: int) -> str:
    """One packed chunk of a site's masked vector."""
    return f"{vectors(job_id, sequence)}/{site}/{index}"


def down(job_id: str, sequence: int, leg: str, site: int | None = None) -> str:
    """A message of the coordinator for one leg: to one site, or to all."""
    return f"{rounds(job_id)}/{sequence:06d}/down/{leg}/{'all' if site is None else site}"


def total(job_id: str, sequence: int, index: int) -> str:
    """One packed chunk of the opened sum."""
    return f"{rounds(job_id)}/{sequence:06d}/sum/{index}"


def transcript(job_id: str, sequence: int) -> str:
    """The signed transcript."""
    return f"{rounds(job_id)}/{sequence:06d}/transcript"


def end(job_id: str) -> str:
    """The signed end of the job."""
    return f"{job(job_id)}/end"


def blob(job_id: str, digest: bytes) -> str:
    """A content-addressed file."""
    return f"{job(job_id)}/blobs/{digest.hex()}"


def federation_rosters() -> str:
    """The folder of all lists of members."""
    return "federation/roster"


def federation_roster(serial: int) -> str:
    """The list of members with this serial."""
    return f"{federation_rosters()}/{serial:06d}"
