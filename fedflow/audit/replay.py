"""Replaying one job: manifest, bindings, and every order with its sum and its model.

The rules, in order:

1. every site that took part had counter-signed the manifest;
2. orders are signed by the coordinator, numbered without gaps, and name a history that exists;
3. an order's model is the one its history produces, starting from the manifest's;
4. a transcript verifies on its own: signatures, commitments, thresholds, one survivor set;
5. its sum is the sum of the masked vectors less the masks its revealed seeds expand to, chunk by
   chunk, and is what was published;
6. the next model and range are what :mod:`fedflow.history` makes of model and sum, the summed
   weight is one its sites can have sent, and the model is in the exchange.

A coordinator that died may leave an abandoned branch: an order whose sum no later order builds on.
It is verified like any other and noted. Beside models and one sum, memory is that of one chunk.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fedflow.audit.evidence import (
    MAX_SMALL,
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
from fedflow.history import (
    Published,
    Rules,
    State,
    advance,
    check_order,
    first_state,
    model_file,
)
from fedflow.learning.groups import check_asked
from fedflow.learning.model_file import decode_model, flatten, spec_of
from fedflow.report import words
from fedflow.secagg.cohort import Cohort
from fedflow.secagg.recomputing import Recomputation
from fedflow.secagg.vectors import CHUNK_WORDS, chunk_count
from fedflow.wire.messages import Countersignature, JobEnd, Kind, Order
from fedflow.wire.sealed import unseal


class Replay:
    """Replays one job into a :class:`JobEvidence`; everything found goes to ``recorder``."""

    def __init__(self, exchange: Exchange, roster: PinnedRoster, recorder: Recorder) -> None:
        self._exchange, self._roster, self._recorder = exchange, roster, recorder
        self._states: dict[bytes, State] = {}
        self._continued: set[bytes] = set()
        self._rules: Rules | None = None
        self._orphans: list[int] = []
        self._sums = 0

    def run(self, name: str) -> JobEvidence | None:
        """Replay the job ``name``; None when not even its manifest verifies."""
        job = read_manifest(self._exchange, name, self._roster, self._recorder)
        if job is None:
            return None
        self._bindings(job)
        start = first_state(job.manifest)
        self._states[start.head] = start
        about = f"first model of job {name}"
        with self._recorder.examining("model", f"{layout.job(name)}, first model", about=about):
            data = need_model(self._exchange, name, job.manifest.initial_model)
            self._rules = Rules(job.manifest, job.plan, spec_of(data))
        for sequence in self._sequences(job):
            self._order(job, sequence)
        self._orphaned(job)
        self._abandoned(job)
        self._end(job)
        if len(self._states) == self._sums + 1:
            job.models = {state.model for state in self._states.values()}
        return job

    def _bindings(self, job: JobEvidence) -> None:
        folder = f"{layout.job(job.id)}/countersign"
        for name in self._exchange.list(folder):
            about = f"signature of {self._site(name)} under the manifest"
            with self._recorder.examining("countersign", f"{folder}/{name}", about=about):
                site = site_number(name, job)
                data = need(self._exchange, layout.countersign(job.id, site), MAX_SMALL)
                bound = unseal(Countersignature, data, job.roster[site])
                if (bound.manifest, bound.site) != (job.digest, site):
                    raise Violation("foreign-signature", "it binds to another manifest or site")
                job.bound.add(site)

    def _site(self, name: str) -> str:
        """The label of the site a file is named after, or the name itself."""
        known = {str(index): label for index, label in self._roster.labels.items()}
        return known.get(name, name)

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
        with self._recorder.examining("order", where, about=f"order {sequence}"):
            data = need(self._exchange, where, MAX_SMALL)
            order = unseal(Order, data, self._roster.coordinator)
            found = RoundEvidence(order, where.removesuffix("/order"))
            found.state = self._check_order(job, order, sequence)
        if found is None:
            return
        job.rounds.append(found)
        read_masked(self._exchange, job, found, self._recorder)
        if not self._has_transcript(job, sequence):
            reason = f"{found.name} left no transcript, so no sum; its charges stay spent."
            self._recorder.note("aborted-round", reason[:1].upper() + reason[1:], found.where)
        else:
            self._sums += 1
            self._transcript(job, found)
        prove_masked(self._exchange, job, found, self._recorder)

    def _has_transcript(self, job: JobEvidence, sequence: int) -> bool:
        # asked by name: a damaged one must reach the check, not pass for an aborted round
        folder, _, name = layout.transcript(job.id, sequence).rpartition("/")
        return name in self._exchange.list(folder)

    def _check_order(self, job: JobEvidence, order: Order, sequence: int) -> State | None:
        kind = Kind(order.kind)
        if order.manifest != job.digest:
            raise Violation("foreign-order", "the order belongs to another manifest")
        if order.sequence != sequence:
            raise Violation("replayed-order", f"order {order.sequence} stands as {sequence}")
        if order.round > job.plan.last_round(kind):
            raise Violation("bad-order", f"round {order.round} is beyond the plan's last")
        size = job.plan.vector_length(kind, job.manifest.dimension)
        if order.dimension != size:
            raise Violation("bad-order", "the order's vector length is not the plan's")
        check_asked(job.plan, order, job.roster)
        before = self._states.get(order.previous)
        if before is None:
            self._orphans.append(sequence)
            return None
        try:
            check_order(before, order)
        except Violation as error:
            raise Violation("broken-history", error.message) from None
        return before

    def _transcript(self, job: JobEvidence, found: RoundEvidence) -> None:
        where = layout.transcript(job.id, found.order.sequence)
        published = Published(self._exchange, job, found.order)
        cohort: Cohort | None = None
        with self._recorder.examining("transcript", where, about=f"transcript of {found.name}"):
            transcript = published.transcript(self._roster.coordinator)
            cohort = published.verify(transcript)
            found.transcript = transcript
            found.context = cohort.context
            found.survivors = transcript.survivors
            unbound = sorted(set(transcript.cohort) - job.bound)
            if unbound:
                names = ", ".join(self._roster.labels[s] for s in unbound)
                raise Violation("unbound-site", f"{names} took part without a countersignature")
        if found.transcript is None or cohort is None:
            return
        total: npt.NDArray[np.uint32] | None = None
        with self._recorder.examining("sum", where, about=f"sum of {found.name}"):
            total = self._sum(published, found, cohort)
        if total is not None:
            self._next_state(job, found, total)

    def _sum(
        self, published: Published, found: RoundEvidence, cohort: Cohort
    ) -> npt.NDArray[np.uint32]:
        """The sum, recomputed; every chunk of it is the published one."""
        transcript = found.transcript
        assert transcript is not None
        recomputation = Recomputation(transcript, cohort, found.headers)
        out = np.empty(found.order.dimension, np.uint32)
        for index in range(chunk_count(out.size)):
            part = recomputation.chunk(index, published.masked_chunk)
            published.sum_chunk(transcript, index)
            out[index * CHUNK_WORDS : (index + 1) * CHUNK_WORDS] = part
        return out

    def _next_state(
        self, job: JobEvidence, found: RoundEvidence, total: npt.NDArray[np.uint32]
    ) -> None:
        """Where the sum takes the history; nowhere when its order was not sound."""
        order, state, rules = found.order, found.state, self._rules
        if order.sequence in self._orphans:
            return
        trains = Kind(order.kind) is Kind.TRAIN
        about = f"model after {found.name}"
        with self._recorder.examining("model", found.where, int(trains), about=about):
            if state is None or rules is None or found.transcript is None:
                raise Violation("broken-history", "the model it starts from is not known")
            if trains:
                before = need_model(self._exchange, job.id, state.model)
                vector = flatten(decode_model(before, rules.spec))
            else:
                vector = np.empty(0, np.float32)  # an evaluation changes no model
            after, vector = advance(rules, state, order, found.transcript, vector, total)
            if trains:
                size = len(model_file(vector, rules.spec))
                key = layout.blob(job.id, after.model)
                if get_blob(self._exchange, key, after.model, size) is None:
                    sentence = "The model that follows from this sum was never published."
                    self._recorder.warn("unpublished-model", sentence, found.where)
            self._states[after.head] = after
            self._continued.add(state.head)

    def _orphaned(self, job: JobEvidence) -> None:
        """One error for everything after a break, so that it does not hide what broke."""
        if not self._orphans:
            return
        first, last = self._orphans[0], self._orphans[-1]
        gaps = last - first + 1 != len(self._orphans)
        which = (
            f"{first} to {last}"
            if last > first and not gaps
            else words.names([str(number) for number in self._orphans])
        )
        one = first == last
        sentence = (
            f"Order{'' if one else 's'} {which} of job {job.id} build{'s' if one else ''} on a sum "
            "that was not verified: which model was trained there, and what followed, is unknown."
        )
        where = f"{layout.rounds(job.id)}/{first:06d}"
        self._recorder.error("order", "broken-history", sentence, where)
        self._recorder.fail("model")

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
        with self._recorder.examining("model", where, 0, about=f"end of job {job.id}"):
            data = self._exchange.get(where, MAX_SMALL)
            if data is None:
                sentence = "The job was not closed: it was stopped, or goes on."
                self._recorder.note("not-ended", sentence, layout.job(job.id))
                return
            end = unseal(JobEnd, data, self._roster.coordinator)
            if end.manifest != job.digest:
                raise Violation("foreign-end", "the end is of another job")
            job.outcome = end.outcome
            if end.model not in {s.model for s in self._states.values()}:
                raise Violation("wrong-model", "the final model does not follow from the rounds")
            need_model(self._exchange, job.id, end.model)
            known = max((r.order.sequence for r in job.rounds), default=0)
            if end.sequence > known:
                raise Violation("missing-order", f"it closes order {end.sequence}, which is gone")
