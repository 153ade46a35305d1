"""Replaying one job: manifest, bindings, and every order with its sum and its model.

The rules, in order:

1. every site that took part had counter-signed the manifest;
2. orders are signed by the coordinator, numbered without gaps, and name a history that exists;
3. an order's model is the one its history produces, starting from the manifest's;
4. a transcript verifies on its own: signatures, commitments, thresholds, one survivor set;
5. its sum is the sum of the masked vectors less the masks its revealed seeds expand to;
6. the next model is what the plan's strategy makes of model and sum, and is in the exchange.

A coordinator that died may leave an abandoned branch: an order whose sum no later order builds on.
It is verified like any other and noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fedflow.audit.evidence import (
    MAX_SMALL,
    MAX_TRANSCRIPT,
    JobEvidence,
    RoundEvidence,
    need,
    need_model,
    read_manifest,
    site_number,
)
from fedflow.audit.findings import Recorder
from fedflow.audit.masked import prove_masked, read_masked
from fedflow.audit.roster import PinnedRoster
from fedflow.errors import Violation
from fedflow.exchange import Exchange, layout
from fedflow.exchange.base import get_blob
from fedflow.learning.model_file import (
    ModelSpec,
    decode_model,
    encode_model,
    flatten,
    model_digest,
    spec_of,
    unflatten,
)
from fedflow.learning.strategy import apply
from fedflow.secagg.context import RoundContext
from fedflow.secagg.transcript import Transcript, recompute_sum, verify_transcript
from fedflow.wire.messages import Countersignature, JobEnd, Kind, Order
from fedflow.wire.sealed import unseal

ZEROS = bytes(32)


@dataclass(frozen=True)
class _State:
    """What a history ends in: the digest of its model, and the number of its last order."""

    model: bytes
    sequence: int


class Replay:
    """Replays one job into a :class:`JobEvidence`; everything found goes to ``recorder``."""

    def __init__(self, exchange: Exchange, roster: PinnedRoster, recorder: Recorder) -> None:
        self._exchange, self._roster, self._recorder = exchange, roster, recorder
        self._states: dict[bytes, _State] = {}
        self._continued: set[bytes] = set()
        self._spec: ModelSpec | None = None

    def run(self, name: str) -> JobEvidence | None:
        """Replay the job ``name``; None when not even its manifest verifies."""
        job = read_manifest(self._exchange, name, self._roster, self._recorder)
        if job is None:
            return None
        self._bindings(job)
        self._states[ZEROS] = _State(job.manifest.initial_model, 0)
        with self._recorder.examining("model", f"{layout.job(name)}, first model"):
            data = need_model(self._exchange, name, job.manifest.initial_model)
            spec = spec_of(data)
            if spec.digest() != job.manifest.model_spec:
                raise Violation("model-mismatch", "the first model's shape is not the manifest's")
            self._spec = spec
        for sequence in self._sequences(job):
            self._order(job, sequence)
        self._abandoned(job)
        self._end(job)
        return job

    def _bindings(self, job: JobEvidence) -> None:
        folder = f"{layout.job(job.id)}/countersign"
        for name in self._exchange.list(folder):
            with self._recorder.examining("countersign", f"{folder}/{name}"):
                site = site_number(name, job)
                data = need(self._exchange, layout.countersign(job.id, site), MAX_SMALL)
                bound = unseal(Countersignature, data, self._roster.keys[site])
                if (bound.manifest, bound.site) != (job.digest, site):
                    raise Violation("foreign-signature", "it binds to another manifest or site")
                job.bound.add(site)

    def _sequences(self, job: JobEvidence) -> list[int]:
        folder, numbers = layout.rounds(job.id), []
        for name in self._exchange.list(folder):
            if name.isascii() and name.isdigit() and f"{int(name):06d}" == name and int(name) > 0:
                numbers.append(int(name))
            else:
                self._recorder.warn("stray-object", "This is not a round.", f"{folder}/{name}")
        numbers.sort()
        for before, after in pairwise([0, *numbers]):
            if after > before + 1:
                which = f"{before + 1}" + (f" to {after - 1}" if after > before + 2 else "")
                sentence = f"Order {which} is missing, later ones exist."
                self._recorder.error("order", "missing-order", sentence, folder)
        return numbers

    def _order(self, job: JobEvidence, sequence: int) -> None:
        where = layout.order(job.id, sequence)
        found: RoundEvidence | None = None
        with self._recorder.examining("order", where):
            data = need(self._exchange, where, MAX_SMALL)
            order = unseal(Order, data, self._roster.coordinator)
            found = RoundEvidence(order, where.removesuffix("/order"))
            self._check_order(job, order, sequence)
        if found is None:
            return
        job.rounds.append(found)
        read_masked(self._exchange, job, found, self._recorder)
        if not self._has_transcript(job, sequence):
            reason = "It ended without a sum; what sites reserved for it stays spent."
            self._recorder.note("aborted-round", reason, found.where)
        else:
            self._transcript(job, found)
        prove_masked(self._exchange, job, found, self._roster)

    def _has_transcript(self, job: JobEvidence, sequence: int) -> bool:
        # asked by name: a damaged one must reach the check, not pass for an aborted round
        folder, _, name = layout.transcript(job.id, sequence).rpartition("/")
        return name in self._exchange.list(folder)

    def _check_order(self, job: JobEvidence, order: Order, sequence: int) -> None:
        kind = Kind(order.kind)
        if order.manifest != job.digest:
            raise Violation("foreign-order", "the order belongs to another manifest")
        if order.sequence != sequence:
            raise Violation("replayed-order", f"order {order.sequence} stands as {sequence}")
        if order.round > job.plan.plan.rounds:
            raise Violation("bad-order", f"round {order.round} is beyond the plan's last")
        size = job.plan.vector_length(kind, job.manifest.dimension)
        if order.dimension != size:
            raise Violation("bad-order", "the order's vector length is not the plan's")
        before = self._states.get(order.previous)
        if before is None:
            raise Violation("broken-history", "the transcript it builds on was never verified")
        if before.model != order.model:
            raise Violation("broken-history", "its model is not the one its history produces")

    def _transcript(self, job: JobEvidence, found: RoundEvidence) -> None:
        where = layout.transcript(job.id, found.order.sequence)
        with self._recorder.examining("transcript", where):
            data = need(self._exchange, where, MAX_TRANSCRIPT)
            transcript = unseal(Transcript, data, self._roster.coordinator)
            verify_transcript(
                transcript,
                round_ctx=RoundContext.of(found.order).digest(),
                roster={e.index: self._roster.keys[e.index] for e in job.manifest.roster},
                colluders=job.plan.cohort.colluders,
                minimum=job.plan.cohort.minimum,
            )
            if transcript.dimension != found.order.dimension:
                raise Violation("bad-length", "the sum is not as long as the order says")
            found.transcript = transcript
            found.context = transcript.context()
            found.survivors = transcript.survivors
            unbound = sorted(set(transcript.cohort) - job.bound)
            if unbound:
                names = ", ".join(self._roster.labels[s] for s in unbound)
                raise Violation("unbound-site", f"{names} took part without a countersignature")
        if found.transcript is None:
            return
        total: npt.NDArray[np.uint32] | None = None
        with self._recorder.examining("sum", where):
            total = recompute_sum(found.transcript, found.masked)
        model = found.order.model
        if Kind(found.order.kind) is Kind.TRAIN and total is not None:
            model = self._model(job, found, total) or b""
        if model and total is not None:
            self._states[found.transcript.digest()] = _State(model, found.order.sequence)
            self._continued.add(found.order.previous)

    def _model(
        self, job: JobEvidence, found: RoundEvidence, total: npt.NDArray[np.uint32]
    ) -> bytes | None:
        with self._recorder.examining("model", found.where):
            if self._spec is None:
                raise Violation("broken-history", "the first model is not known")
            before = need_model(self._exchange, job.id, found.order.model)
            vector = flatten(decode_model(before, self._spec))
            update = job.plan.quantiser(len(job.manifest.roster)).decode(total)
            after = apply(vector, update, len(found.survivors), job.plan)
            digest = model_digest(encode_model(unflatten(after, self._spec)))
            if get_blob(self._exchange, layout.blob(job.id, digest), digest, len(before)) is None:
                sentence = "The model that follows from this sum was never published."
                self._recorder.warn("unpublished-model", sentence, found.where)
            return digest
        return None

    def _abandoned(self, job: JobEvidence) -> None:
        last = max(self._states.values(), key=lambda s: s.sequence).sequence
        for digest, state in self._states.items():
            if digest not in self._continued and state.sequence not in (0, last):
                where = f"{layout.rounds(job.id)}/{state.sequence:06d}"
                self._recorder.note(
                    "abandoned-sum", "No later order builds on this sum (a restart).", where
                )

    def _end(self, job: JobEvidence) -> None:
        where = layout.end(job.id)
        with self._recorder.examining("model", where, 0):
            data = self._exchange.get(where, MAX_SMALL)
            if data is None:
                sentence = "The job was not closed: it was stopped, or goes on."
                self._recorder.note("not-ended", sentence, layout.job(job.id))
                return
            end = unseal(JobEnd, data, self._roster.coordinator)
            if end.manifest != job.digest:
                raise Violation("foreign-end", "the end is of another job")
            if end.model not in {s.model for s in self._states.values()}:
                raise Violation("wrong-model", "the final model does not follow from the rounds")
            need_model(self._exchange, job.id, end.model)
            known = max((r.order.sequence for r in job.rounds), default=0)
            if end.sequence > known:
                raise Violation("missing-order", f"it closes order {end.sequence}, which is gone")
