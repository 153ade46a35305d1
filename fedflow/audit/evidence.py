"""Reading a job's objects: what the exchange of an audited folder holds, one kind per function."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedflow.audit.findings import Recorder
from fedflow.audit.roster import PinnedRoster
from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Violation
from fedflow.exchange import Exchange, layout, open_exchange
from fedflow.exchange.base import get_blob
from fedflow.history import Missing, State
from fedflow.learning.plan import Plan
from fedflow.secagg.transcript import Transcript
from fedflow.wire.messages import Kind, Manifest, Order
from fedflow.wire.sealed import unseal

MAX_SMALL = layout.MAX_SEALED_BYTES


@dataclass
class RoundEvidence:
    """One order and what came of it. ``context`` and ``transcript`` only when it was completed.

    ``state`` is what a sound order builds on. ``headers`` holds every masked message found in a
    site's place, ``digests`` their SHA-256, and ``signed`` the sites that provably made theirs:
    anybody may write into an exchange. ``bare`` are sites in whose place are chunks of a masked
    vector without the message that names them. ``shares`` is how many sites' answers open the sum.
    """

    order: Order
    where: str
    state: State | None = None
    transcript: Transcript | None = None
    context: bytes | None = None
    survivors: tuple[int, ...] = ()
    headers: dict[int, bytes] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    signed: set[int] = field(default_factory=set)
    bare: set[int] = field(default_factory=set)
    shares: int = 0

    @property
    def purpose(self) -> str:
        """``train`` or ``evaluate``."""
        return Kind(self.order.kind).word

    @property
    def name(self) -> str:
        """The round in words, for sentences."""
        order = self.order
        attempt = f", attempt {order.attempt}" if order.attempt > 1 else ""
        return f"round {order.round} ({self.purpose}{attempt})"


@dataclass
class JobEvidence:
    """A job whose manifest verified, with the rounds found so far.

    ``models`` are the digests of every model its sums lead to, empty while one of those sums could
    not be followed. ``outcome`` is how the coordinator
    closed it; empty when it did not.
    """

    manifest: Manifest
    digest: bytes
    plan: Plan
    roster: dict[int, PublicKey]
    rounds: list[RoundEvidence] = field(default_factory=list)
    bound: set[int] = field(default_factory=set)
    models: set[bytes] = field(default_factory=set)
    outcome: str = ""

    @property
    def id(self) -> str:
        """The job id."""
        return self.manifest.job


def open_folder(folder: Path) -> Exchange:
    """The exchange of an audited folder, without creating anything; InputError when absent."""
    root, allowed = folder / "exchange", "the folder of a job, with exchange/jobs below it"
    try:
        if not folder.is_dir():
            word = "this is a file" if folder.exists() else "there is no such folder"
            raise InputError(word, where=str(folder), allowed=allowed)
        if not (root / "jobs").is_dir():
            raise InputError(
                "there is no exchange/jobs below it", where=str(folder), allowed=allowed
            )
        exchange = open_exchange(str(root))
        exchange.list("jobs")
    except OSError as error:
        raise InputError(
            f"it cannot be read: {error.strerror}",
            where=str(error.filename or folder),
            allowed="a folder that whoever runs the audit may read",
        ) from None
    return exchange


def need(exchange: Exchange, key: str, limit: int) -> bytes:
    """An object that must be there; Violation ``missing`` when it is not."""
    data = exchange.get(key, limit)
    if data is None:
        raise Missing(key)
    return data


def need_model(exchange: Exchange, job: str, digest: bytes) -> bytes:
    """A model file that must be there, with the digest in its name."""
    data = get_blob(exchange, layout.blob(job, digest), digest, layout.MAX_MODEL_BYTES)
    if data is None:
        raise Violation("missing", f"the model {digest.hex()[:12]} is not in the exchange")
    return data


def read_manifest(
    exchange: Exchange, job: str, roster: PinnedRoster, recorder: Recorder
) -> JobEvidence | None:
    """The job's manifest: signed by the pinned authority, naming the pinned parties only."""
    with recorder.examining("manifest", layout.manifest(job), about=f"manifest of job {job}"):
        data = need(exchange, layout.manifest(job), layout.MAX_MANIFEST_BYTES)
        manifest = unseal(Manifest, data, roster.authority)
        if manifest.job != job:
            raise Violation("manifest-mismatch", f"it is the manifest of job {manifest.job}")
        if manifest.coordinator != roster.coordinator.raw:
            raise Violation("unknown-coordinator", "it names a coordinator that is not pinned")
        for entry in manifest.roster:
            key = PublicKey(entry.public_key)  # a site's key may have been replaced between jobs
            if (
                entry.index not in roster.keys
                or key not in roster.all_keys(entry.index)
                or roster.labels[entry.index] != entry.label
            ):
                raise Violation("unknown-site", f"its site {entry.label} is not the pinned one")
        plan = Plan.from_canonical(manifest.plan)
        if (manifest.colluders, manifest.minimum) != (plan.cohort.colluders, plan.cohort.minimum):
            raise Violation("bad-manifest", "manifest and plan disagree about the cohort")
        if plan.secure_aggregation.value_range not in ("auto", manifest.value_range):
            raise Violation("bad-manifest", "manifest and plan disagree about the range of values")
        keys = {entry.index: PublicKey(entry.public_key) for entry in manifest.roster}
        return JobEvidence(manifest, manifest.digest(), plan, keys)
    return None


def site_number(name: str, job: JobEvidence) -> int:
    """The site index a file is named after; Violation when it is not in the job's roster."""
    number = int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else -1
    if number not in job.roster:
        raise Violation("unknown-site", f"{name} is not a site of this job")
    return number
