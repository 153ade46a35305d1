"""A job at the coordinator, round after round: order, sum, update, checkpoint.

Each step is one method, so an orchestrator can show it as one task. Where the job is, and how a
coordinator that died goes on, is in :mod:`fedflow.coordinator.progress`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedflow.coordinator.left_out import LeftOut
from fedflow.coordinator.presence import Presence
from fedflow.coordinator.progress import JobProgress
from fedflow.coordinator.records import RoundRecord
from fedflow.coordinator.secure_round import RoundResult, SecureRound
from fedflow.coordinator.selection import SiteHistory, cohort_size, select_sites
from fedflow.coordinator.settings import CoordinatorFolder
from fedflow.coordinator.stopping import stop_reason
from fedflow.crypto.csprng import Csprng
from fedflow.errors import Aborted, Misuse, Refusal, Violation
from fedflow.exchange import layout
from fedflow.history import State, advance, model_file
from fedflow.learning.groups import group_of_round
from fedflow.orders import read_order
from fedflow.wire.messages import Kind, Order

__all__ = ["JobRunner", "RoundRecord", "Superseded"]


class Superseded(Refusal):
    """Another coordinator with the same key went on with the job: this one has no part in it."""

    def __init__(self, sequence: int) -> None:
        super().__init__(
            "superseded",
            f"order {sequence} was put by another coordinator of this job; this one stops, and"
            " leaves the job to it",
        )


@dataclass(frozen=True)
class _Next:
    """What the last sum of a training round makes of the job, before it is published."""

    result: RoundResult
    state: State
    vector: NDArray[np.float32]


class JobRunner(JobProgress):
    """One job's steps."""

    def __init__(self, coordinator: CoordinatorFolder, job_id: str) -> None:
        super().__init__(coordinator, job_id)
        self._unsent: Order | None = None
        self._began: float | None = None
        self._next: _Next | None = None
        self._left_out = LeftOut(
            coordinator.anchors_path, self.job, coordinator.members(), coordinator.exchange
        )
        self._presence = Presence(coordinator.exchange, self.job, self._arrived)
        self._running: asyncio.Task[RoundResult] | None = None
        self.current: SecureRound | None = None

    # ---- presence

    def _arrived(self, site: int) -> None:
        self.event("site-present", site=self.job.labels[site])

    def look_for_sites(self) -> set[int]:
        """Read new presence messages; returns the indices believed present."""
        return self._presence.look()

    async def wait_for_sites(self, seconds: float, *, enough: int | None = None) -> set[int]:
        """Wait until ``enough`` sites (default: all of the roster) are present, or time is up.

        Raises Aborted when fewer than the plan's minimum came.
        """
        minimum = self.job.plan.cohort.minimum
        if self._presence.can_come < minimum:
            seconds = 0.0  # nobody else will come
        until = time.monotonic() + seconds
        wanted = len(self.job.roster) if enough is None else enough
        while len(self.look_for_sites()) < wanted and time.monotonic() < until:
            await asyncio.sleep(0.1)
        present = self._presence.present
        if len(present) < minimum:
            raise Aborted(
                "too-few-sites",
                f"{len(present)} of {len(self.job.roster)} sites are present, the plan needs"
                f" {minimum}",
            )
        return set(present)

    def awaited(self) -> list[str]:
        """Labels of the sites the open round waits for."""
        present = self._presence.present
        asked = self.current.order.asked(present) if self.current else present
        return sorted(self.job.labels[site] for site in asked)

    # ---- one secure sum

    def attempts(self, number: int, kind: Kind, most: int | None = None) -> Iterator[int]:
        """Numbers for the attempts at one sum, until ``most`` were aborted (default: settings).

        They count on from those of a coordinator that died. Those it left open do not count as
        aborted, but there is an end to them too.
        """
        most = self.coordinator.settings.max_attempts if most is None else most
        return self._attempts.numbers(number, kind, most)

    def _invited(self, kind: Kind, number: int, expected: set[int]) -> tuple[int, ...]:
        """Whom a round asks; none for everybody. An evaluation asks all that are there.

        A group is asked as a whole, in every attempt: who is in it is not this coordinator's to
        say, and who is away is waited for as in any round.
        """
        plan, labels = self.job.plan, self.job.labels
        if plan.participation.groups is not None and kind is Kind.TRAIN:
            return group_of_round(plan, self.job.digest, labels, number)
        if kind is not Kind.TRAIN or cohort_size(plan, len(labels)) == len(labels):
            return ()
        asked = self.history_of_sites()
        return select_sites(plan, labels, expected, asked, Csprng.from_os())

    def history_of_sites(self) -> dict[int, SiteHistory]:
        """How often each site was in a sum of this job, and how often it was asked in vain."""
        paid = Counter(label for record in self.records for label in record.sites)
        missed = Counter(
            label
            for record in self.records
            for label in {*record.dropped, *record.absent, *record.refused}
        )
        return {i: SiteHistory(paid[n], missed[n]) for i, n in self.job.labels.items()}

    def stop_reason(self) -> str | None:
        """Why the job is done before its last round; None while it goes on."""
        plan = self.job.plan  # only a plan with a time limit has the first order read
        seconds = 0.0 if plan.stopping.max_seconds is None else self._running_for()
        return stop_reason(plan, self.records, seconds, len(self._presence.left))

    def _running_for(self) -> float:
        """Seconds since the job's first order, also of a coordinator that died."""
        if self._sequence == 0:
            return 0.0
        if self._began is None:
            job = self.job
            key = self.coordinator.identity.public
            first = read_order(self.coordinator.exchange, job.id, job.digest, key, 1)
            ended = None if first is None else first.deadline / 1000
            self._began = time.time() if ended is None else ended - job.plan.order_seconds
        return max(0.0, time.time() - self._began)

    def _new_order(self, number: int, attempt: int, kind: Kind, expected: set[int]) -> Order:
        plan, state = self.job.plan, self._state
        if self._unsent is not None:
            # It may have arrived although the exchange did not say so: the same bytes again.
            unsent, self._unsent = self._unsent, None
            if (unsent.round, unsent.attempt, unsent.kind) == (number, attempt, kind):
                return unsent
        self._sequence += 1
        return Order(
            manifest=self.job.digest,
            sequence=self._sequence,
            round=number,
            attempt=attempt,
            kind=kind,
            model=state.model,
            previous=state.head,
            value_range=state.value_range,
            dimension=plan.vector_length(kind, self.job.manifest.dimension),
            deadline=int((time.time() + plan.order_seconds) * 1000),
            invited=self._invited(kind, number, expected),
        )

    def dispatch(self, number: int, attempt: int, kind: Kind) -> SecureRound:
        """Sign and publish an order for the current model, and start collecting answers.

        OSError when the exchange cannot be reached: call again, the order stays the same one.
        :class:`Superseded` when another coordinator put an order in this place.
        """
        expected = self.look_for_sites() - set(self._left_out.barred())
        order = self._new_order(number, attempt, kind, expected)
        expected = order.asked(expected)

        def notify(leg: str, site: int) -> None:
            label = self.job.labels.get(site)
            self.event("message", round=number, kind=kind.word, leg=leg, site=label)

        self.current = SecureRound(
            self.coordinator, self.job, order, expected, self._left_out, notify
        )
        self._publish(self.current)
        self._attempts.ordered(number, kind, attempt)
        self.event(
            "order",
            round=number,
            attempt=attempt,
            kind=kind.word,
            sequence=order.sequence,
            expected=sorted(self.job.labels[s] for s in expected),
        )
        self._next = None
        self._running = asyncio.create_task(self.current.run())
        return self.current

    def _publish(self, secure_round: SecureRound) -> None:
        order = secure_round.order
        try:
            secure_round.publish()
        except OSError:
            self._unsent = order
            raise
        except Violation as error:
            coordinator = self.coordinator
            there = read_order(
                coordinator.exchange,
                self.job.id,
                self.job.digest,
                coordinator.identity.public,
                order.sequence,
            )
            if error.code == "already-put" and there is not None:
                raise Superseded(order.sequence) from None
            raise

    async def collect(self) -> RoundResult:
        """The sum of the order dispatched last; Aborted with its reason.

        Aborted too when the sum makes no model: then the history stays where it was.
        """
        if self._running is None or self.current is None:
            raise Misuse("nothing was dispatched")
        try:
            result = await self._running
            self._follow(self.current.order, result)
        except Aborted as error:
            order = self.current.order
            self._attempts.aborted(order.round, Kind(order.kind))
            self.checkpoint()
            raise self._explained(error) from None
        finally:
            self._running = None
            for site, reason in self._left_out.reasons.items():
                self.event("left-out", site=self.job.labels[site], reason=reason)
            present = self._presence.present
            there = self.current.still_there() | (present - self.current.order.asked(present))
            self._presence.after_round(there, self.current.left_the_job())
        return result

    async def give_up(self) -> None:
        """Stop collecting what was dispatched last: the coordinator leaves, or the job ends."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def _follow(self, order: Order, result: RoundResult) -> None:
        outcome = result.outcome
        try:
            state, vector = advance(
                self._rules, self._state, order, outcome.transcript, self._vector, outcome.sum
            )
        except Violation as error:
            raise Aborted(error.code, error.message) from None
        if Kind(order.kind) is Kind.EVALUATE:
            self._state = state
        else:
            self._next = _Next(result, state, vector)

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
        """Publish the model that follows from the last sum and go on from it; its digest."""
        following = self._next
        if following is None or following.result is not result:
            raise Misuse("only the sum collected last makes the next model")
        data = model_file(following.vector, self._rules.spec)
        digest = following.state.model
        self.coordinator.exchange.put(layout.blob(self.job.id, digest), data)
        self._state, self._vector, self._next = following.state, following.vector, None
        return digest

    def record(self, record: RoundRecord, result: RoundResult) -> None:
        """Fill in and keep the facts of a finished training round."""
        self.fill(record, result)
        self._keep(record)

    def fill(self, record: RoundRecord, result: RoundResult) -> None:
        """Fill in who took part in a sum, who did not and why, and what it took."""
        record.fill(self.job, result)
