"""Who may write and read what. Pure: facts in, the reason against it out. Denies by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedflow.exchange.places import OF_COORDINATOR, OF_SITE, Kind, Place
from fedflow.wire.membership import Role

_OTHERS = "this place belongs to another member"
_NO_JOB = "there is no such job here"
_NOT_LISTED = "the job's manifest does not list this member"


@dataclass(frozen=True)
class Party:
    """Whose request it is: an active member, or the authority (``role`` is None)."""

    key: bytes
    role: Role | None
    label: str

    @property
    def word(self) -> str:
        """The role as metrics and logs name it."""
        return "authority" if self.role is None else self.role.word


@dataclass(frozen=True)
class JobFacts:
    """What a job's signed manifest says of who takes part. ``sites`` maps keys to indices."""

    coordinator: bytes
    sites: Mapping[bytes, int]
    not_after: int


def why_not_write(party: Party, place: Place, job: JobFacts | None, body: str) -> str | None:
    """None when ``party`` may put bytes with SHA-256 ``body`` (hex) there; else why not.

    ``job`` is what the job's manifest says; None while there is none.
    """
    if place.kind is Kind.BLOB and place.digest != body:
        return "a blob's name is the SHA-256 of its bytes"
    if party.role is None:
        mine = (Kind.ROSTER, Kind.MANIFEST, Kind.BLOB)
        return None if place.kind in mine else _OTHERS
    if party.role is Role.COORDINATOR:
        return _why_not_coordinator(party, place, job)
    if party.role is Role.SITE:
        if place.kind not in OF_SITE:
            return _OTHERS
        if job is None:
            return _NO_JOB
        index = job.sites.get(party.key)
        if index is None:
            return _NOT_LISTED
        return None if place.site == index else _OTHERS
    return "an auditor only reads"


def _why_not_coordinator(party: Party, place: Place, job: JobFacts | None) -> str | None:
    if place.kind in (Kind.MANIFEST, Kind.BLOB) and job is None:
        return None  # the first model is there before the manifest
    if place.kind not in OF_COORDINATOR | {Kind.MANIFEST, Kind.BLOB}:
        return _OTHERS
    if job is None:
        return _NO_JOB
    return None if job.coordinator == party.key else _NOT_LISTED


def why_not_read(party: Party, place: Place, job: JobFacts | None) -> str | None:
    """None when ``party`` may read the place; else why not."""
    if place.kind is Kind.ROSTER:
        return None
    reason = why_not_see(party, job)
    if reason is None and place.kind is Kind.DELIVERY and job is not None:
        index = job.sites.get(party.key)
        if party.role is Role.SITE and index != place.site:
            return _OTHERS
    return reason


def why_not_see(party: Party, job: JobFacts | None) -> str | None:
    """None when ``party`` may look into a job at all; else why not."""
    if party.role in (None, Role.AUDITOR):
        return None
    if job is None:  # nothing of it can be there but a first model
        return None if party.role is Role.COORDINATOR else _NO_JOB
    mine = party.key in job.sites if party.role is Role.SITE else party.key == job.coordinator
    return None if mine else _NOT_LISTED
