"""How far a job is: rounds done, the newest state, what was published and not written down yet.

What happened is in the exchange, signed; the checkpoint, one small file, only spares reading it
again. A coordinator that died goes on with :meth:`JobProgress.resume` after the last sum it had
published, with its checkpoint or without.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from fedflow.coordinator.adoption import Adopted, Adoption
from fedflow.coordinator.attempts import Attempts
from fedflow.coordinator.job import Job, load_job
from fedflow.coordinator.records import Checkpoint, RoundRecord
from fedflow.coordinator.secure_round import RoundResult
from fedflow.coordinator.settings import CoordinatorFolder
from fedflow.errors import FedflowError, Misuse, Violation
from fedflow.exchange import layout
from fedflow.exchange.base import get_blob
from fedflow.history import Rules, State, first_state, model_file
from fedflow.learning.model_file import decode_model, flatten, spec_of
from fedflow.wire.codec import plain_text
from fedflow.wire.messages import JobEnd, Kind, Order
from fedflow.wire.sealed import seal, unseal


class JobProgress:
    """One job's state at its coordinator."""

    def __init__(self, coordinator: CoordinatorFolder, job_id: str) -> None:
        self.coordinator = coordinator
        self.job: Job = load_job(coordinator.exchange, job_id, coordinator.authority)
        manifest = self.job.manifest
        if manifest.coordinator != coordinator.identity.public.raw:
            raise Misuse("this coordinator's key is not the one in the job's manifest")
        # Names and shapes come from the first model, whose hash the authority signed.
        spec = spec_of(self._blob(manifest.initial_model))
        self._rules = Rules(manifest, self.job.plan, spec)
        self.records: list[RoundRecord] = []
        self._state = first_state(manifest)
        self._sequence = 0
        self._attempts = Attempts()
        #: Told every event, beside the log: name and facts.
        self.watchers: list[Callable[[str, Mapping[str, Any]], None]] = []
        self._load()
        self._vector = flatten(decode_model(self._blob(self._state.model), spec))

    def _blob(self, digest: bytes) -> bytes:
        key = layout.blob(self.job.id, digest)
        data = get_blob(self.coordinator.exchange, key, digest, layout.MAX_MODEL_BYTES)
        if data is None:
            raise Violation("no-model", "the model file is not in the exchange")
        return data

    def _load(self) -> None:
        path = self.coordinator.state_path(self.job.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = Checkpoint.load(path, self.job.digest)
        if found is not None:
            self.records, self._state = found.records, found.state
            self._sequence, self._attempts = found.sequence, Attempts(found.tries)
        elif not self.job.plan.plan.rounds:
            self.records = [RoundRecord(number=1, finished=False)]  # only scored, never trained

    def resume(self) -> list[Order]:
        """Take over what was published since the checkpoint; the orders whose sums were taken.

        Without a checkpoint that is all there is. Never two of these for one job at a time: hold
        its lease. Refusal ``cannot-rebuild`` when the exchange lacks what the job builds on,
        OSError while it is down.
        """
        adoption = Adoption(self.coordinator.exchange, self.job, self._rules)
        taken = []
        for adopted in adoption.follow(self._state, self._vector):
            self._adopt(adopted, adoption)
            taken.append(adopted.order)
        newest = adoption.newest
        if newest is not None:
            # Its number is used up, whatever became of it.
            self._sequence = max(self._sequence, newest.sequence)
            if not self._settled(newest):
                self._attempts.ordered(newest.round, Kind(newest.kind), newest.attempt)
            if self.records and newest.round > self.records[-1].number:
                self.records[-1].finished = True  # its evaluation was given up
        if taken:
            self.checkpoint()
        return taken

    def _settled(self, order: Order) -> bool:
        if Kind(order.kind) is Kind.TRAIN:
            return order.round < self.next_round
        return order.round != self.to_evaluate

    def _adopt(self, adopted: Adopted, adoption: Adoption) -> None:
        order = adopted.order
        if Kind(order.kind) is Kind.EVALUATE:
            record = self.records[-1] if self.records else None
            if record is not None and record.number == order.round:
                count = len(adopted.transcript.survivors)
                if adopted.total is not None:
                    record.scored(self.job.plan, adopted.total, count)
                record.finished = True
        else:
            data = model_file(adopted.vector, self._rules.spec)
            self.coordinator.exchange.put(layout.blob(self.job.id, adopted.state.model), data)
            self._keep(adoption.record(adopted))
        self._state, self._vector = adopted.state, adopted.vector
        self.event("adopted", round=order.round, kind=Kind(order.kind).word, order=order.sequence)

    def checkpoint(self) -> None:
        """Make the state after a step durable."""
        path = self.coordinator.state_path(self.job.id)
        state = Checkpoint(
            self.job.digest, self._state, self._sequence, self.records, self._attempts.tries
        )
        state.save(path)

    def event(self, name: str, **facts: Any) -> None:
        """Append one line to the job's event log, for whoever watches."""
        with open(self.coordinator.events_path(self.job.id), "a") as file:
            file.write(json.dumps({"event": name, "time": time.time(), **facts}) + "\n")
        for watcher in self.watchers:
            watcher(name, facts)

    @property
    def next_round(self) -> int:
        """The first round without a record."""
        return len(self.records) + 1

    @property
    def to_evaluate(self) -> int | None:
        """The last round, while the evaluation that the plan has after it is still to come."""
        return self.records[-1].number if self.records and not self.records[-1].finished else None

    @property
    def end(self) -> JobEnd | None:
        """How this coordinator closed the job, if it has."""
        key = layout.end(self.job.id)
        data = self.coordinator.exchange.get(key, layout.MAX_SEALED_BYTES)
        if data is None:
            return None
        try:
            end = unseal(JobEnd, data, self.coordinator.identity.public)
        except FedflowError:
            return None  # somebody else's bytes end nothing
        return end if end.manifest == self.job.digest else None

    @property
    def state(self) -> State:
        """Where the job's history is: what the next order builds on."""
        return self._state

    @property
    def model_digest(self) -> bytes:
        """SHA-256 of the current global model's file."""
        return self._state.model

    def evaluates(self, number: int) -> bool:
        """Whether the plan scores the model after this round."""
        return self.job.plan.is_evaluated(number)

    def _keep(self, record: RoundRecord) -> None:
        if self.records:
            self.records[-1].finished = True
        record.finished = not self.evaluates(record.number)
        self.records.append(record)

    def score(self, result: RoundResult) -> RoundRecord:
        """The last record, with the score that an evaluation's sum gives."""
        record, outcome = self.records[-1], result.outcome
        record.scored(self.job.plan, outcome.sum, len(outcome.survivors))
        return record

    def close(self, outcome: str, reason: str) -> None:
        """Tell the sites that the job is over, for good: it cannot be resumed.

        Only a decision does that: all rounds are done, a round has no sum in any attempt, somebody
        cancelled the job. Nothing happens to a job that is closed already.
        """
        if self.end is not None:
            return
        sentence = plain_text(reason, 500)  # it may list many sites
        message = JobEnd(self.job.digest, self._sequence, outcome, sentence, self._state.model)
        key = layout.end(self.job.id)
        self.coordinator.exchange.put(key, seal(self.coordinator.identity, message))
        self.event("end", outcome=outcome, reason=reason)
