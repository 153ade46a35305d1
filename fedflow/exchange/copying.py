"""Mirrors one job from one exchange into another, for an audit or to keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fedflow.errors import InputError, Refusal, Violation
from fedflow.exchange import layout
from fedflow.exchange.base import Exchange
from fedflow.exchange.places import Kind, place, size_limit
from fedflow.wire.messages import JOB_ID, MAX_SITES

#: Folders of a job, or of an order, and how deep names go below them.
_FOLDERS = (("blobs", 1), ("countersign", 1), ("hello", 1))
_OF_ORDER = (("up", 2), ("down", 2), ("sum", 1))


@dataclass
class Copied:
    """What a copy did. ``left_out`` are names with the reason why they were not copied."""

    objects: int = 0
    bytes: int = 0
    skipped: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)


def copy_job(
    source: Exchange, target: Exchange, job: str, progress: Callable[[int, int], None]
) -> Copied:
    """Copy every object of ``job``. Names that are none of the layout are not looked at.

    The manifest comes last, so a relay or auditor never takes a part for the whole. InputError when
    there is no such job; OSError while either side is away: call it again to go on.
    """
    if not JOB_ID.fullmatch(job):
        raise InputError(
            f"{job!r} cannot be a job id", field="job", allowed="lower-case letters, digits, dashes"
        )
    manifest = source.get(layout.manifest(job), layout.MAX_MANIFEST_BYTES)
    if manifest is None:
        raise InputError(f"there is no job {job!r} in the exchange", field="job")
    keys = list(_keys(source, job))
    result = Copied()
    for done, key in enumerate(keys):
        progress(done, len(keys) + 1)
        _copy(source, target, key, result)
    _put(target, layout.manifest(job), manifest, result)
    progress(len(keys) + 1, len(keys) + 1)
    return result


def _copy(source: Exchange, target: Exchange, key: str, result: Copied) -> None:
    where = place(key)
    assert where is not None
    try:
        data = source.get(key, size_limit(where.kind, MAX_SITES))
        if data is not None:  # else it is at an end between listing and reading
            _put(target, key, data, result)
    except (Refusal, Violation) as error:
        result.left_out.append((key, error.message))


def _put(target: Exchange, key: str, data: bytes, result: Copied) -> None:
    before = target.get(key)
    if before == data:
        result.skipped += 1
    else:
        target.put(key, data)  # Violation when other bytes are there
    result.objects, result.bytes = result.objects + 1, result.bytes + len(data)


def _keys(source: Exchange, job: str) -> Iterator[str]:
    root = layout.job(job)
    for name, depth in _FOLDERS:
        yield from _below(source, f"{root}/{name}", depth)
    for sequence in layout.sequences(source.list(layout.rounds(job))):
        at = f"{layout.rounds(job)}/{sequence:06d}"
        for name, depth in _OF_ORDER:
            yield from _below(source, f"{at}/{name}", depth)
        yield from (layout.transcript(job, sequence), layout.order(job, sequence))
    yield layout.end(job)


def _below(source: Exchange, folder: str, depth: int) -> Iterator[str]:
    """Names of the layout below a folder; a masked vector's chunks are one folder deeper."""
    for name in source.list(folder):
        key = f"{folder}/{name}"
        found = place(key)
        if found is not None and found.kind is not Kind.MANIFEST:
            yield key
        elif depth > 1 or folder.endswith("/up/vector"):
            yield from _below(source, key, depth - 1)
