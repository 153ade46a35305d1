"""A job at the coordinator, round after round: order, sum, update, checkpoint.

Each step is one method, so an orchestrator can show it as one task. State between rounds is one
small checkpoint file, written atomically: a coordinator that died goes on after the last round
whose model it had published.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from fedflow.coordinator.job import Job, load_job
from fedflow.coordinator.secure_round import RoundResult, SecureRound
from fedflow.coordinator.settings import CoordinatorFolder
from fedflow.errors import Aborted, FedflowError, Misuse, Violation
from fedflow.exchange import layout
from fedflow.exchange.base import get_blob
from fedflow.learning.evaluation import auc_from_histogram
from fedflow.learning.model_file import (
    decode_model,
    encode_model,
    flatten,
    model_digest,
    spec_of,
    unflatten,
)
from fedflow.learning.strategy import apply
from fedflow.orders import newest_order
from fedflow.privacy.plan_cost import is_evaluated
from fedflow.secagg.quantise import decode_integers
from fedflow.wire.codec import plain_text
from fedflow.wire.messages import Hello, JobEnd, Kind, Order, labelled_hash
from fedflow.wire.sealed import seal, unseal

_ZEROS = bytes(32)


@dataclass
class RoundRecord:
    """The public facts of one round, as reports and screens show them.

    ``dropped`` sites were lost within the round; ``recovered`` are those of them whose masks had to
    be recovered; ``absent`` sites were not there when it began.
    """

    number: int
    sites: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    training_seconds: float = 0.0
    auc: float | None = None
    auc_stderr: float | None = None
    bytes: dict[str, int] = field(default_factory=dict)
    attempts: int = 1
    aborted: bool = False
    reason: str = ""

    def facts(self) -> dict[str, Any]:
        """As plain values, for the event log and the report."""
        return asdict(self)


class JobRunner:
    """One job's state and steps."""

    def __init__(self, coordinator: CoordinatorFolder, job_id: str) -> None:
        self.coordinator = coordinator
        self.job: Job = load_job(coordinator.exchange, job_id, coordinator.authority)
        if self.job.manifest.coordinator != coordinator.identity.public.raw:
            raise Misuse("this coordinator's key is not the one in the job's manifest")
        # Names and shapes come from the first model, whose hash the authority signed.
        self._spec = spec_of(self._blob(self.job.manifest.initial_model))
        if self.job.manifest.model_spec != self._spec.digest():
            raise Violation("model-mismatch", "the first model does not fit the job's manifest")
        self.records: list[RoundRecord] = []
        self._previous = _ZEROS
        self._model = self.job.manifest.initial_model
        self._resume()
        self._vector = flatten(decode_model(self._blob(self._model), self._spec))
        self._present: set[int] = set()
        self._left: set[int] = set()
        self._hellos: set[str] = set()
        self._running: asyncio.Task[RoundResult] | None = None
        self.current: SecureRound | None = None

    # ---- state

    def _blob(self, digest: bytes) -> bytes:
        data = get_blob(
            self.coordinator.exchange,
            layout.blob(self.job.id, digest),
            digest,
            layout.MAX_MODEL_BYTES,
        )
        if data is None:
            raise Violation("no-model", "the model file is not in the exchange")
        return data

    def _resume(self) -> None:
        # Orders already published, maybe after the last checkpoint, are dead: never reuse a number.
        newest = newest_order(
            self.coordinator.exchange,
            self.job.id,
            self.job.digest,
            self.coordinator.identity.public,
        )
        self._sequence = 0 if newest is None else newest.sequence
        path = self.coordinator.state_path(self.job.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        state = json.loads(path.read_text())
        if state["manifest"] != self.job.digest.hex():
            raise Misuse("the checkpoint belongs to another manifest of the same job id")
        self.records = [RoundRecord(**record) for record in state["rounds"]]
        self._previous = bytes.fromhex(state["previous"])
        self._model = bytes.fromhex(state["model"])
        self._sequence = max(self._sequence, state["sequence"])

    def checkpoint(self) -> None:
        """Make the state after a finished round durable."""
        path = self.coordinator.state_path(self.job.id)
        state: dict[str, Any] = {
            "manifest": self.job.digest.hex(),
            "sequence": self._sequence,
            "previous": self._previous.hex(),
            "model": self._model.hex(),
            "rounds": [asdict(record) for record in self.records],
        }
        aside = path.with_suffix(".tmp")
        with open(aside, "w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)

    def event(self, name: str, **facts: Any) -> None:
        """Append one line to the job's event log, for whoever watches."""
        with open(self.coordinator.events_path(self.job.id), "a") as file:
            file.write(json.dumps({"event": name, "time": time.time(), **facts}) + "\n")

    @property
    def next_round(self) -> int:
        """The first round without a record."""
        return len(self.records) + 1

    @property
    def model_digest(self) -> bytes:
        """SHA-256 of the current global model's file."""
        return self._model

    # ---- presence

    def look_for_sites(self) -> set[int]:
        """Read new presence messages; returns the indices believed present."""
        exchange = self.coordinator.exchange
        for name in exchange.list(layout.hellos(self.job.id)):
            if name in self._hellos:
                continue
            self._hellos.add(name)
            index = name.split("-")[0]
            if not index.isdecimal() or int(index) not in self.job.roster:
                continue
            try:
                data = exchange.get(f"{layout.hellos(self.job.id)}/{name}", layout.MAX_SEALED_BYTES)
                hello = unseal(Hello, data or b"", self.job.roster[int(index)])
            except FedflowError:
                continue  # not that site's signature: not its presence
            if hello.manifest == self.job.digest and hello.site == int(index):
                self._present.add(hello.site)
                self._left.discard(hello.site)
                self.event("site-present", site=self.job.labels[hello.site])
        return set(self._present)

    async def wait_for_sites(self, seconds: float, *, enough: int | None = None) -> set[int]:
        """Wait until ``enough`` sites (default: all of the roster) are present, or time is up.

        Raises Aborted when fewer than the plan's minimum came.
        """
        staying = len(self.job.roster) - len(self._left)
        if staying < self.job.plan.cohort.minimum:
            seconds = 0.0  # nobody else will come
        until = time.monotonic() + seconds
        wanted = len(self.job.roster) if enough is None else enough
        while len(self.look_for_sites()) < wanted and time.monotonic() < until:
            await asyncio.sleep(0.1)
        if len(self._present) < self.job.plan.cohort.minimum:
            raise Aborted(
                "too-few-sites",
                f"{len(self._present)} of {len(self.job.roster)} sites are present, the plan needs "
                f"{self.job.plan.cohort.minimum}",
            )
        return set(self._present)

    def awaited(self) -> list[str]:
        """Labels of the sites the open round waits for."""
        return sorted(self.job.labels[site] for site in self._present)

    # ---- one secure sum

    def dispatch(self, number: int, attempt: int, kind: Kind) -> SecureRound:
        """Sign and publish an order for the current model, and start collecting answers."""
        plan = self.job.plan
        self._sequence += 1
        order = Order(
            manifest=self.job.digest,
            sequence=self._sequence,
            round=number,
            attempt=attempt,
            kind=kind,
            model=self._model,
            previous=self._previous,
            dimension=plan.vector_length(kind, self.job.manifest.dimension),
            deadline=int((time.time() + plan.order_seconds) * 1000),
        )

        def notify(leg: str, site: int) -> None:
            label = self.job.labels.get(site)
            self.event("message", round=number, kind=kind.word, leg=leg, site=label)

        expected = self.look_for_sites()
        self.current = SecureRound(self.coordinator, self.job, order, expected, notify)
        self.current.publish()
        self.event(
            "order",
            round=number,
            attempt=attempt,
            kind=kind.word,
            sequence=order.sequence,
            expected=sorted(self.job.labels[s] for s in expected),
        )
        self._running = asyncio.create_task(self.current.run())
        return self.current

    async def collect(self) -> RoundResult:
        """The sum of the order dispatched last; Aborted with its reason."""
        if self._running is None or self.current is None:
            raise Misuse("nothing was dispatched")
        try:
            result = await self._running
        except Aborted as error:
            raise self._explained(error) from None
        finally:
            self._running = None
            # Whoever fell silent, or left the job, is waited for again only after its next hello.
            self._present = self.current.still_there()
            self._left |= self.current.left_the_job()
        self._previous = labelled_hash("transcript", result.outcome.transcript.encode())
        return result

    def _explained(self, error: Aborted) -> Aborted:
        """The same abort, led by the sites' refusals where there are any: they are the cause."""
        refused: dict[str, list[str]] = {}
        for site, code in (self.current.refusals() if self.current else {}).items():
            refused.setdefault(code, []).append(self.job.labels[site])
        because = "; ".join(
            f"{', '.join(sorted(sites))} refused: {code}" for code, sites in refused.items()
        )
        reason = f"{because}; {error.message}" if because else error.message
        number = self.current.order.round if self.current else 0
        self.event("aborted", round=number, reason=reason)
        return Aborted(error.code, reason)

    # ---- what the sum does

    def update(self, result: RoundResult) -> bytes:
        """Apply the mean update and publish the next model; returns its digest."""
        total = self.job.plan.quantiser(len(self.job.roster)).decode(result.outcome.sum)
        count = len(result.outcome.survivors)
        vector = apply(self._vector, total, count, self.job.plan)
        data = encode_model(unflatten(vector, self._spec))
        digest = model_digest(data)
        self.coordinator.exchange.put(layout.blob(self.job.id, digest), data)
        self._vector, self._model = vector, digest
        return digest

    def evaluates(self, number: int) -> bool:
        """Whether the plan scores the model after this round."""
        return is_evaluated(self.job.plan, number)

    def record(self, record: RoundRecord, result: RoundResult) -> None:
        """Fill in and keep the facts of a finished training round."""
        labels, outcome = self.job.labels, result.outcome
        record.sites = [labels[s] for s in outcome.survivors]
        record.seconds, record.training_seconds = result.seconds, result.training_seconds
        record.bytes = {labels[s]: n for s, n in result.bytes_by_site.items()}
        for site, answer in result.answers.items():
            if answer.outcome == "refused":
                record.refused[labels[site]] = f"{answer.code}: {answer.reason}"
            elif site in outcome.survivors:
                continue
            elif answer.code == "absent":
                record.absent.append(labels[site])
            else:
                record.dropped.append(labels[site])
                if site in outcome.delivered:
                    record.recovered.append(labels[site])
        self.records.append(record)

    def score(self, result: RoundResult) -> tuple[float, float]:
        """AUC and its standard error (from the privacy noise) of the summed histogram."""
        survivors = len(result.outcome.survivors)
        return auc_from_histogram(decode_integers(result.outcome.sum), self.job.plan, survivors)

    def close(self, outcome: str, reason: str) -> None:
        """Tell the sites that the job is over."""
        sentence = plain_text(reason, 500)  # it may list many sites
        message = JobEnd(self.job.digest, self._sequence, outcome, sentence, self._model)
        key = layout.end(self.job.id)
        self.coordinator.exchange.put(key, seal(self.coordinator.identity, message))
        self.event("end", outcome=outcome, reason=reason)
