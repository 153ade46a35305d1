"""Making a job out of a federation: the authority signs what its members are to do.

::

    FED/jobs/<job>/manifest      the sealed manifest
    FED/jobs/<job>/model         the first model
    FED/jobs/<job>/roster.json   the keys an auditor pins for this job

The folder is whole before anything is published, so that a job whose exchange was away, or whose
authority is offline, is published later from it with the same bytes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from fedflow.coordinator.job import opened, publish_job, sign_job, write_roster
from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Refusal, Violation
from fedflow.exchange import Exchange
from fedflow.federation.authority import DAY, AuthorityFolder
from fedflow.federation.members import read_file
from fedflow.learning.plan import Plan
from fedflow.site.durable import private_folder, sync_folder, write_durably
from fedflow.wire.membership import Member, Role
from fedflow.wire.messages import JOB_ID, Manifest
from fedflow.wire.sealed import unseal

MANIFEST, MODEL, ROSTER = "manifest", "model", "roster.json"


def make_job(
    authority: AuthorityFolder,
    *,
    job: str,
    plan: Plan,
    sites: Sequence[str] | None = None,
    coordinator: str | None = None,
    valid_days: int = 1,
    trained: bytes | None = None,
) -> tuple[Path, Manifest]:
    """Sign a job for ``sites`` (labels; all active ones when None); its folder and manifest.

    Its first model is the workload's, or ``trained``: a model file, as a job's rounds make them.
    Refusal ``job-taken`` for an id this authority has signed before, ``not-a-member`` for a label
    that is no active site, and those of :func:`~fedflow.coordinator.job.sign_job`.
    """
    from fedflow.learning.first_model import first_model
    from fedflow.learning.model_file import decode_model

    if not JOB_ID.fullmatch(job):
        raise InputError(
            f"{job!r} cannot be a job id",
            field="--job",
            allowed="lower-case letters, digits, dashes",
        )
    folder = authority.path / "jobs" / job
    if folder.exists():
        raise Refusal(
            "job-taken",
            f"this authority has signed a job {job} already ({folder}), and a job never changes:"
            " another plan or other sites is a new manifest, hence a new job. Choose another id; to"
            f" publish the one that was signed: fedflow job publish {folder}",
        )
    now = time.time()
    chosen = _sites(authority, sites, now)
    lead = _coordinator(authority, coordinator, now)
    first = first_model(plan)
    model = first.file if trained is None else trained
    if trained is not None:
        try:
            decode_model(trained, first.spec)
        except Violation as error:
            raise Refusal(
                "bad-model",
                f"{error.message}. A model fits plans of its own workload, server optimiser and"
                " clipping: take the plan it was trained by",
            ) from None
    sealed = sign_job(
        job=job,
        plan=plan,
        sites={m.label: PublicKey(m.public_key) for m in chosen},
        coordinator=PublicKey(lead.public_key),
        authority=authority.identity,
        initial_model=model,
        spec=first.spec,
        reference_persons=first.reference_persons,
        valid_seconds=valid_days * DAY,
    )
    manifest = unseal(Manifest, sealed, authority.identity.public)
    private_folder(authority.path / "jobs")
    aside = authority.path / "jobs" / f".{job}.{os.getpid()}"
    aside.mkdir(mode=0o700)
    try:
        write_durably(aside / MODEL, model)
        write_durably(aside / MANIFEST, sealed)
        write_roster(aside / ROSTER, opened(manifest), authority.identity.public, authority.roster)
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return folder, manifest


def publish_folder(folder: Path, exchange: Exchange, authority: PublicKey) -> Manifest:
    """Put the job in ``folder`` into the exchange, checked against ``authority``."""
    sealed = read_file(folder / MANIFEST)
    try:
        model = (folder / MODEL).read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(folder / MODEL)) from None
    return publish_job(exchange, sealed, model, authority)


def copy_folder(folder: Path, target: Path) -> None:
    """The job's files for somebody to carry to the coordinator; never over other files."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (MODEL, ROSTER, MANIFEST):
        try:
            with open(target / name, "xb") as file:
                file.write((folder / name).read_bytes())
        except FileExistsError:
            raise InputError(
                "is here already; choose an empty folder", where=str(target / name)
            ) from None


def ending_within(manifest: Manifest, members: Sequence[Member]) -> list[Member]:
    """Members of a job whose time ends before the job's does."""
    keys = {manifest.coordinator, *(entry.public_key for entry in manifest.roster)}
    return [m for m in members if m.public_key in keys and m.not_after < manifest.not_after]


def _sites(
    authority: AuthorityFolder, wanted: Sequence[str] | None, now: float
) -> tuple[Member, ...]:
    active = authority.roster.active(Role.SITE, now)
    if wanted is None:
        return active
    known = {member.label: member for member in active}
    if len(set(wanted)) != len(wanted):
        raise InputError("a site is named twice", field="--sites")
    missing = [label for label in wanted if label not in known]
    if missing:
        names = ", ".join(known) or "none"
        raise Refusal(
            "not-a-member", f"{', '.join(missing)}: no active site of that name (active: {names})"
        )
    return tuple(known[label] for label in wanted)


def _coordinator(authority: AuthorityFolder, wanted: str | None, now: float) -> Member:
    active = authority.roster.active(Role.COORDINATOR, now)
    found = [m for m in active if wanted in (None, m.label)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(m.label for m in active) or "none"
    if not found:
        what = "no active coordinator" if wanted is None else f"no active coordinator {wanted}"
        raise Refusal("not-a-member", f"the federation has {what} (active: {names})")
    raise InputError(
        "several coordinators are active; choose one", field="--coordinator", allowed=names
    )
