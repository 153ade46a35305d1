"""What an exchange holds of one order's outcome: transcript, sum, masked vectors. Read and checked.

Whatever is read here has a size limit that follows from the order and the roster. What is not there
is :class:`Missing`, and proves nothing; what contradicts a signature or a hash is any other
Violation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import PublicKey
from fedflow.errors import Violation
from fedflow.exchange import Exchange, layout
from fedflow.learning.plan import Plan
from fedflow.secagg.cohort import Cohort
from fedflow.secagg.context import RoundContext
from fedflow.secagg.recomputing import Recomputation
from fedflow.secagg.transcript import Transcript, verify_transcript
from fedflow.secagg.vectors import (
    CHUNK_WORDS,
    chunk_count,
    chunk_hash,
    chunk_words,
    packed_size,
    unpack,
)
from fedflow.wire.messages import Kind, Order
from fedflow.wire.sealed import unseal


class Missing(Violation):
    """Something that should be in the exchange is not there, or not yet."""

    def __init__(self, key: str) -> None:
        super().__init__("missing", f"there is no {key} in the exchange")


class JobFacts(Protocol):
    """A verified manifest, as coordinator, site and auditor each hold it."""

    @property
    def id(self) -> str:
        """The job's id."""

    @property
    def plan(self) -> Plan:
        """The plan in the manifest."""

    @property
    def roster(self) -> Mapping[int, PublicKey]:
        """Every site's key by its index."""


class Published:
    """The outcome of ``order``, as far as ``exchange`` holds it. OSError while that is down."""

    def __init__(self, exchange: Exchange, job: JobFacts, order: Order) -> None:
        self._exchange, self._job, self.order = exchange, job, order
        self.bits = job.plan.bits(Kind(order.kind))

    def get(self, key: str, limit: int) -> bytes:
        """An object that must be there, at most ``limit`` bytes; else :class:`Missing`."""
        data = self._exchange.get(key, limit)
        if data is None:
            raise Missing(key)
        return data

    def transcript(self, coordinator: PublicKey) -> Transcript:
        """What the coordinator signed as this order's transcript. Not verified beyond that."""
        key = layout.transcript(self._job.id, self.order.sequence)
        data = self.get(key, layout.transcript_limit(len(self._job.roster)))
        return unseal(Transcript, data, coordinator)

    def verify(self, transcript: Transcript) -> Cohort:
        """Every rule of ``verify_transcript``, by the plan's thresholds; the round's cohort."""
        plan = self._job.plan
        return verify_transcript(
            transcript,
            round_ctx=RoundContext.of(self.order).digest(),
            # Whoever was not asked is nobody in this round: else an order's word means nothing.
            roster={s: key for s, key in self._job.roster.items() if self.order.invites(s)},
            colluders=plan.cohort.colluders,
            minimum=plan.cohort.minimum,
            suite_number=plan.suite,
            bits=self.bits,
            dimension=self.order.dimension,
        )

    def _chunk(self, key: str, index: int) -> bytes:
        size = packed_size(chunk_words(self.order.dimension, index), self.bits)
        return self.get(key, size)

    def masked_chunk(self, site: int, index: int) -> bytes:
        """One packed chunk of a site's masked vector, unchecked."""
        return self._chunk(layout.vector(self._job.id, self.order.sequence, site, index), index)

    def sum_chunk(self, transcript: Transcript, index: int) -> NDArray[np.uint32]:
        """One chunk of the published sum. Violation ``other-sum`` unless its hash is announced."""
        key = layout.total(self._job.id, self.order.sequence, index)
        data = self._chunk(key, index)
        if chunk_hash(data) != transcript.sum_chunks[index]:
            raise Violation("other-sum", "the published sum is not the one that was announced")
        return unpack(data, self.bits, chunk_words(self.order.dimension, index))

    def total(self, transcript: Transcript) -> NDArray[np.uint32]:
        """The published sum, uint32[d], read chunk by chunk."""
        out = np.empty(self.order.dimension, np.uint32)
        for index in range(chunk_count(out.size)):
            at = index * CHUNK_WORDS
            out[at : at + CHUNK_WORDS] = self.sum_chunk(transcript, index)
        return out

    def headers(self, transcript: Transcript) -> dict[int, bytes]:
        """The survivors' masked messages, which name every chunk of their vectors. Unchecked."""
        limit, job = layout.leg_limit(len(self._job.roster)), self._job.id
        return {
            site: self.get(layout.up(job, self.order.sequence, "masked", site), limit)
            for site in transcript.survivors
        }

    def spot_check(
        self, transcript: Transcript, cohort: Cohort, count: int, csprng: Csprng
    ) -> list[int]:
        """Recompute ``count`` random chunks of the sum; which ones. Violation when one is wrong.

        Which chunks is nobody else's to know beforehand, so a server that announced another sum in
        some of them does not know whether it will be found.
        """
        chunks = list(range(chunk_count(self.order.dimension)))
        chosen = [chunks.pop(_below(len(chunks), csprng)) for _ in range(min(count, len(chunks)))]
        if chosen:
            recomputation = Recomputation(transcript, cohort, self.headers(transcript))
            for index in chosen:
                recomputation.chunk(index, self.masked_chunk)
        return chosen


def _below(bound: int, csprng: Csprng) -> int:
    """A uniform integer in 0..bound-1; the bias of 64 bits modulo a small bound is below 2^-50."""
    return int.from_bytes(csprng.bytes(8), "big") % bound
