"""What the exchange holds of a job beyond a state: outcomes that no checkpoint names.

A coordinator that died may have published a transcript and no more. Whoever goes on finds it here,
checked as a site or an auditor would, and takes the sum as it is: a second order for it would cost
the sites a second time. From the state before the first sum this is the whole history of the job.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedflow.coordinator.job import Job
from fedflow.coordinator.records import RoundRecord
from fedflow.crypto.identity import PublicKey
from fedflow.errors import FedflowError, Refusal, Violation
from fedflow.exchange import Exchange, layout
from fedflow.history import Missing, Published, Rules, State, advance
from fedflow.orders import newest_order, read_order
from fedflow.secagg.transcript import Transcript
from fedflow.wire.messages import Decline, Kind, Order
from fedflow.wire.sealed import unseal

log = logging.getLogger("fedflow.coordinator")


@dataclass(frozen=True)
class Adopted:
    """One sum as it was published, and the state it leads to. ``vector`` is that state's model."""

    order: Order
    transcript: Transcript
    total: NDArray[np.uint32] | None
    state: State
    vector: NDArray[np.float32]


class Adoption:
    """Reads what followed a state of ``job``, up to the order numbered highest."""

    def __init__(self, exchange: Exchange, job: Job, rules: Rules) -> None:
        self._exchange, self._job, self._rules = exchange, job, rules
        self._coordinator = PublicKey(job.manifest.coordinator)
        self.newest = newest_order(exchange, job.id, job.digest, self._coordinator)

    def follow(self, state: State, vector: NDArray[np.float32]) -> Iterator[Adopted]:
        """Every sum from ``state`` on, in the order in which they build on each other.

        Which of two sums that build on the same state counts is what the newest order says: it
        builds on one of them. Its own sum counts when it holds. Refusal ``cannot-rebuild`` when the
        newest order builds on something that is not there or does not hold.
        """
        newest = self.newest
        if newest is None or newest.sequence <= state.sequence:
            return
        for order, transcript in self._path(state, newest):
            try:
                adopted = self._checked(state, vector, order, transcript)
            except Violation as error:
                raise Refusal("cannot-rebuild", self._cannot(order, error)) from None
            yield adopted
            state, vector = adopted.state, adopted.vector
        try:
            transcript = Published(self._exchange, self._job, newest).transcript(self._coordinator)
            yield self._checked(state, vector, newest, transcript)
        except Missing:
            return  # it was left open, or it was aborted
        except Violation as error:
            log.warning("the sum of order %d is not taken: %s", newest.sequence, error.message)

    def _path(self, state: State, newest: Order) -> list[tuple[Order, Transcript]]:
        """What leads from ``state`` to the state that the newest order builds on, ascending."""
        wanted, path = newest.previous, []
        for sequence in range(newest.sequence - 1, state.sequence, -1):
            if wanted == state.head:
                break
            order = self._order(sequence)
            if order is None:
                continue
            try:
                published = Published(self._exchange, self._job, order)
                transcript = published.transcript(self._coordinator)
            except Violation:
                continue
            if transcript.digest() == wanted:
                path.append((order, transcript))
                wanted = order.previous
        if wanted != state.head:
            raise Refusal(
                "cannot-rebuild",
                f"order {newest.sequence} of job {self._job.id} builds on a sum that is not in the"
                " exchange or does not follow from this coordinator's checkpoint. Restore the"
                " newest checkpoint, or what is missing from the exchange",
            )
        return path[::-1]

    def _order(self, sequence: int) -> Order | None:
        job = self._job
        return read_order(self._exchange, job.id, job.digest, self._coordinator, sequence)

    def _checked(
        self, state: State, vector: NDArray[np.float32], order: Order, transcript: Transcript
    ) -> Adopted:
        """Verify one outcome by every rule there is for it."""
        published, kind = Published(self._exchange, self._job, order), Kind(order.kind)
        if order.dimension != self._job.plan.vector_length(kind, self._job.manifest.dimension):
            raise Violation("bad-order", "the order's vector length is not the plan's")
        if order.previous != state.head:
            raise Violation("broken-history", "the order builds on another state")
        published.verify(transcript)
        total = published.total(transcript)
        after, vector = advance(self._rules, state, order, transcript, vector, total)
        return Adopted(order, transcript, total, after, vector)

    def _cannot(self, order: Order, error: Violation) -> str:
        return (
            f"the sum of order {order.sequence} of job {self._job.id}, on which later orders build,"
            f" does not hold: {error.message}"
        )

    def record(self, adopted: Adopted) -> RoundRecord:
        """What is known of a training round from what was published. Times are not."""
        order, transcript, labels = adopted.order, adopted.transcript, self._job.labels
        record = RoundRecord(number=order.round, attempts=order.attempt, rebuilt=True)
        record.sites = [labels[site] for site in transcript.survivors]
        for site in sorted(set(labels) - set(transcript.survivors)):
            declined = self._decline(order, site)
            if declined is not None:
                record.refused[labels[site]] = f"{declined.code}: {declined.reason}"
            elif site not in transcript.cohort and self._rests(order, site):
                record.resting.append(labels[site])
            elif site not in transcript.cohort:
                record.absent.append(labels[site])
            else:
                record.dropped.append(labels[site])
                if site in transcript.delivered:
                    record.recovered.append(labels[site])
        return record

    def _rests(self, order: Order, site: int) -> bool:
        return self._job.plan.is_asynchronous or not order.invites(site)

    def _decline(self, order: Order, site: int) -> Decline | None:
        key = layout.up(self._job.id, order.sequence, "decline", site)
        try:
            data = self._exchange.get(key, layout.MAX_SEALED_BYTES)
            decline = unseal(Decline, data or b"", self._job.roster[site])
        except FedflowError:
            return None
        named = (decline.order, decline.site) == (order.digest(), site)
        return decline if named else None
