"""Everything public about a finished round, so that anyone can check it later, offline.

U2 is the sites with a dealing, U3 those with a masked record. The secrets are public by then: seeds
of survivors, mask keys of dropped sites, never both of one site. They open the sum and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Refusal, Violation
from fedflow.secagg.cohort import Cohort, key_of, make_cohort, verify_cohort
from fedflow.secagg.messages import (
    MASKED_LABEL,
    MAX_DIMENSION,
    Advert,
    Dealing,
    Masked,
    Signed,
    ascending,
    vector_hash,
)
from fedflow.secagg.params import MAX_COHORT
from fedflow.secagg.unmasking import expected_kinds, matches, remove_masks
from fedflow.wire.codec import U16, Bytes32, ListOf, Message, Nested, Signature, UInt
from fedflow.wire.messages import labelled_hash


@dataclass(frozen=True, slots=True)
class MaskedRecord(Message, type_id=34):
    """The hash of a survivor's masked vector, and its signature."""

    site: U16
    digest: Bytes32
    signature: Signature


@dataclass(frozen=True, slots=True)
class RevealedSecret(Message, type_id=35):
    """A survivor's self-mask seed, or a dropped site's mask key."""

    site: U16
    secret: Bytes32 = field(repr=False)


@dataclass(frozen=True, slots=True)
class Transcript(Message, type_id=36):
    """The public record of one round. Check it with :func:`verify_transcript`."""

    SEAL: ClassVar[str] = "secagg transcript"

    round_ctx: Bytes32
    dimension: Annotated[int, UInt(4, most=MAX_DIMENSION)]
    adverts: Annotated[tuple[Advert, ...], ListOf(Nested(Advert), MAX_COHORT)]
    dealings: Annotated[tuple[Dealing, ...], ListOf(Nested(Dealing), MAX_COHORT)]
    masked: Annotated[tuple[MaskedRecord, ...], ListOf(Nested(MaskedRecord), MAX_COHORT)]
    signatures: Annotated[tuple[Signed, ...], ListOf(Nested(Signed), MAX_COHORT)]
    secrets: Annotated[tuple[RevealedSecret, ...], ListOf(Nested(RevealedSecret), MAX_COHORT)]
    sum_hash: Bytes32

    def check(self) -> None:
        """Every list is ascending by site, U3 is in U2 in U1, and the secrets are those of U2."""
        for entries in (self.adverts, self.dealings, self.masked, self.signatures, self.secrets):
            ascending(entry.site for entry in entries)
        u1, u2, u3 = set(self.cohort), set(self.delivered), set(self.survivors)
        if not u3 <= u2 <= u1 or {entry.site for entry in self.secrets} != u2:
            raise Violation("bad-sets", "the transcript's sets of sites do not nest")

    @property
    def cohort(self) -> tuple[int, ...]:
        """U1: the sites that advertised keys."""
        return tuple(advert.site for advert in self.adverts)

    @property
    def delivered(self) -> tuple[int, ...]:
        """U2: the sites that dealt shares."""
        return tuple(dealing.site for dealing in self.dealings)

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3: the sites in the sum."""
        return tuple(record.site for record in self.masked)

    def context(self) -> bytes:
        """The 32-byte context that all keys of the round depend on."""
        return self._cohort().context

    def digest(self) -> bytes:
        """The 32-byte hash that the next round's context builds on."""
        return labelled_hash("transcript", self.encode())

    def _cohort(self) -> Cohort:
        # Thresholds are the verifier's affair; the loosest ones are enough to derive the context.
        try:
            return make_cohort(self.adverts, self.round_ctx, 0, 1)
        except Refusal as refusal:
            raise Violation(refusal.code, refusal.message) from None


def verify_transcript(
    transcript: Transcript,
    *,
    round_ctx: bytes,
    roster: Mapping[int, PublicKey],
    colluders: int,
    minimum: int,
) -> None:
    """Return when the record holds together; Violation naming the first rule it breaks.

    1. It is of the expected round. 2. The cohort's adverts, by the checker's own thresholds.
    3. Every dealing of U2 is signed. 4. U3 is within U2 and large enough, and every survivor
    signed its masked vector's hash. 5. Enough survivors signed this U2 and U3. 6. The secrets are
    exactly those of U2, each what its owner committed to. The sum: :func:`recompute_sum`.
    """
    # (1)
    if transcript.round_ctx != round_ctx:
        raise Violation("other-round", "the transcript is of another round")
    transcript.check()
    # (2)
    cohort = verify_cohort(
        transcript.adverts,
        round_ctx=round_ctx,
        roster=roster,
        colluders=colluders,
        minimum=minimum,
    )
    # (3)
    delivered, survivors = transcript.delivered, transcript.survivors
    for dealing in transcript.dealings:
        cohort.check_dealing(dealing, roster)
    cohort.check_delivered(delivered)
    # (4)
    cohort.check_survivors(delivered, survivors)
    delivered_hash = cohort.set_hash("delivered", delivered)
    for record in transcript.masked:
        body = Masked.signed(cohort.context, record.site, delivered_hash, record.digest)
        key_of(roster, record.site).verify(MASKED_LABEL, body, record.signature)
    # (5)
    cohort.check_signatures(transcript.signatures, delivered, survivors, roster)
    # (6)
    kinds = expected_kinds(delivered, survivors)
    for entry, (site, kind), dealing in zip(
        transcript.secrets, kinds, transcript.dealings, strict=True
    ):
        if not matches(cohort, site, kind, entry.secret, dealing.commitment):
            raise Violation("bad-secret", f"the secret of site {site} is not what it committed to")


def masked_vector(message: bytes) -> tuple[int, NDArray[np.uint32]]:
    """The site and the masked vector (uint32 [d], read-only) of a MASKED message."""
    masked = Masked.decode(message)
    if len(masked.vector) % 4:
        raise Violation("bad-length", "a masked vector is a whole number of 4-byte words")
    return masked.site, np.frombuffer(masked.vector, "<u4")


def recompute_sum(
    transcript: Transcript, masked: Mapping[int, bytes], threads: int = 1
) -> NDArray[np.uint32]:
    """The sum (uint32 [d]) from the survivors' stored MASKED messages.

    Run :func:`verify_transcript` first. Violation when a message is missing, is not the one whose
    hash and signature the transcript holds, or the sum is not the one the server announced.
    """
    transcript.check()
    cohort = transcript._cohort()
    delivered_hash = cohort.set_hash("delivered", transcript.delivered)
    total = np.zeros(transcript.dimension, np.uint32)
    for record in transcript.masked:
        if record.site not in masked:
            raise Violation("missing-vector", f"the masked vector of site {record.site} is missing")
        message = Masked.decode(masked[record.site])
        same = (message.site, message.delivered, message.signature)
        if same != (record.site, delivered_hash, record.signature):
            raise Violation("other-vector", f"site {record.site}: not the message of this round")
        if len(message.vector) != total.nbytes or vector_hash(message.vector) != record.digest:
            raise Violation("other-vector", f"site {record.site}: not the vector that it signed")
        total += np.frombuffer(message.vector, "<u4")
    secrets = {entry.site: entry.secret for entry in transcript.secrets}
    remove_masks(total, cohort, transcript.survivors, secrets, threads)
    if vector_hash(total.tobytes()) != transcript.sum_hash:
        raise Violation("wrong-sum", "the masked vectors do not add up to the announced sum")
    return total
