"""A site follows the job's history itself, and takes nobody's word for a model while it can.

Before an order is answered the site looks for the state the order builds on:

* It knows the state: the order must name exactly that model and range, else ``wrong-model``.
* It does not, but what was published since a state it knows is there: it replays that.
* It cannot: it takes part without vouching, and the protocol's client then refuses unless more
  sites than may collude vouch. Once it accepted the cohort, the site takes the order's model and
  range as that state: at least one honest site had computed it.

After a round the site checks transcript and sum as soon as they are there, and computes the next
model. What is missing proves nothing and is not waited for. What contradicts a signature or a hash
is remembered, and orders that build on it are declined (``broken-history``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fedflow.crypto.csprng import Csprng
from fedflow.errors import FedflowError, Refusal, Violation
from fedflow.exchange import Exchange, layout
from fedflow.exchange.base import get_blob
from fedflow.history import (
    Missing,
    Published,
    Rules,
    State,
    advance,
    check_due,
    check_order,
    first_state,
    model_file,
)
from fedflow.learning.model_file import decode_model, flatten, spec_of
from fedflow.learning.server_state import ROUND, memory_sizes
from fedflow.orders import read_order
from fedflow.secagg.positions import ROLLBACK
from fedflow.secagg.transcript import Transcript
from fedflow.site.admission import Admitted
from fedflow.site.remembered import Remembered
from fedflow.wire.messages import Kind, Order

log = logging.getLogger("fedflow.site")

#: Orders looked at, at most, to catch up with a job's history.
MOST_REPLAYED = 64
#: Seconds between two looks for an outcome; longer each time.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0


#: Told every transcript that verified, with its order and the cohort's context.
OnTranscript = Callable[[Order, Transcript, bytes], None]


def _ignore(order: Order, transcript: Transcript, context: bytes) -> None:
    """Nothing else to learn from a transcript."""


class Unproven(Exception):
    """What would prove an outcome is not there, or is not what its owner signed."""


@contextlib.contextmanager
def _as_evidence() -> Iterator[None]:
    """Reading evidence: only a sum that is wrong speaks against the coordinator.

    Anybody may have removed or damaged the rest, which leaves the outcome unproven.
    """
    try:
        yield
    except Violation as error:
        if error.code == "wrong-sum":
            raise
        raise Unproven(f"{error.code}: {error.message}") from None


class Following:
    """One job's history at one site, durable in ``folder``.

    ``spot_checks`` is how many random chunks of every sum the site recomputes; 0 for none.
    ``on_transcript`` may raise Refusal: the site then answers nothing that builds on it.
    """

    def __init__(
        self,
        folder: Path,
        exchange: Exchange,
        job: Admitted,
        *,
        spot_checks: int,
        on_transcript: OnTranscript = _ignore,
    ) -> None:
        self._on_transcript = on_transcript
        self._exchange, self._job, self._spot_checks = exchange, job, spot_checks
        self._memory = Remembered.load(folder, job.id, job.digest)
        self._first = first_state(job.manifest)
        self._rules: Rules | None = None
        self._last: Order | None = None
        self._look_at, self._pause = 0.0, FIRST_PAUSE

    def state(self, head: bytes) -> State | None:
        """The state that ends in this transcript, if the site knows it."""
        return self._first if head == self._first.head else self._memory.states.get(head)

    async def prepare(self, order: Order) -> bool:
        """Whether this site can vouch for the model of an admitted ``order``.

        Violation ``wrong-model`` when its history produces another model or range, and
        ``broken-history`` when the history that the order builds on does not hold.
        """
        self._last, self._look_at, self._pause = order, 0.0, FIRST_PAUSE
        if self.state(order.previous) is None:
            await self._catch_up(order)
        self._refuse_broken(order.previous)
        state = self.state(order.previous)
        if state is None:
            log.info("order %d builds on a history this site does not know", order.sequence)
            return False
        check_order(state, order)
        return True

    def adopt(self, order: Order) -> None:
        """Take the order's model and range as the state it builds on: enough sites vouched."""
        if self.state(order.previous) is None:
            self._memory.add(
                State(order.previous, order.sequence - 1, order.model, order.value_range)
            )

    def model(self, digest: bytes) -> bytes:
        """The model file with this SHA-256: the site's own copy, or from the exchange.

        :class:`Missing` when it is in neither, Violation ``wrong-digest`` for other bytes.
        """
        own = self._memory.model(digest)
        if own is not None:
            return own
        key = layout.blob(self._job.id, digest)
        data = get_blob(self._exchange, key, digest, layout.MAX_MODEL_BYTES)
        if data is None:
            raise Missing(key)
        self._keep(data)
        return data

    def due_model(self, order: Order) -> bytes:
        """The :meth:`model` of an order, before anything is trained from it.

        Violation ``wrong-round`` as :func:`check_due`: nobody is asked out of turn.
        """
        data, job = self.model(order.model), self._job
        if Kind(order.kind) is Kind.TRAIN and ROUND in memory_sizes(
            job.plan, job.manifest.dimension
        ):
            check_due(decode_model(data, self._rules_of(data).spec), order)
        return data

    async def look(self, *, at_once: bool = False) -> None:
        """Follow the order answered last, if what it led to is there by now. Never waits for it.

        Refusal ``ledger-rollback`` when it shows that this site's ledger is not the newest.
        """
        order, now = self._last, time.monotonic()
        if order is None or self.state(order.previous) is None:
            return
        if now < self._look_at and not at_once:
            return
        self._look_at, self._pause = now + self._pause, min(2 * self._pause, LONGEST_PAUSE)
        try:
            if await self._follow(order) is not None:
                self._last = None
        except (Unproven, OSError):
            return
        except Refusal as error:
            if error.code == ROLLBACK:
                raise
            log.warning("after order %d: %s: %s", order.sequence, error.code, error.message)
        except FedflowError as error:
            self._last = None
            log.warning("after order %d: %s: %s", order.sequence, error.code, error.message)

    def is_final(self, model: bytes) -> bool:
        """Whether a model is one that the history this site knows has produced."""
        return model in {self._first.model, *(s.model for s in self._memory.states.values())}

    def _refuse_broken(self, head: bytes) -> None:
        code = self._memory.broken.get(head)
        if code is not None:
            raise Violation("broken-history", f"the order builds on a sum that failed: {code}")

    async def _catch_up(self, order: Order) -> None:
        """Replay what leads from a known state to ``order``, as far as it is there."""
        try:
            for sequence in self._path_to(order):
                past = self._order(sequence)
                if past is None or await self._follow(past) is None:
                    return
        except (Unproven, OSError) as error:
            log.info("cannot catch up before order %d: %s", order.sequence, error)
        except Violation:
            # Remembered already; what builds on it, this order included, is broken as well.
            if order.previous not in self._memory.broken:
                self._memory.add_broken(order.previous, "broken-history")

    def _path_to(self, order: Order) -> list[int]:
        """The numbers of the orders from a known state to the one before ``order``, ascending."""
        wanted, path = order.previous, []
        for sequence in range(order.sequence - 1, max(0, order.sequence - 1 - MOST_REPLAYED), -1):
            if wanted in self._memory.broken or self.state(wanted) is not None:
                break
            past = self._order(sequence)
            if past is None:
                continue
            transcript = self._transcript(Published(self._exchange, self._job, past))
            if transcript is not None and transcript.digest() == wanted:
                path.append(sequence)
                wanted = past.previous
        if wanted in self._memory.broken:
            # What builds on a broken sum is broken.
            self._memory.add_broken(order.previous, self._memory.broken[wanted])
            return []
        return path[::-1] if self.state(wanted) is not None else []

    def _order(self, sequence: int) -> Order | None:
        job = self._job
        return read_order(self._exchange, job.id, job.digest, job.coordinator, sequence)

    def _transcript(self, published: Published) -> Transcript | None:
        """What the coordinator signed; None for nothing, and for what others put in its place."""
        try:
            return published.transcript(self._job.coordinator)
        except Violation:
            return None

    async def _follow(self, order: Order) -> State | None:
        """The state after ``order``, whose own state is known; None when it has none (yet).

        Unproven or OSError when it cannot be found out; Violation, remembered, when it is broken.
        """
        published = Published(self._exchange, self._job, order)
        transcript = self._transcript(published)
        if transcript is None:
            return None
        head, state = transcript.digest(), self.state(order.previous)
        if head in self._memory.broken or state is None:
            return None
        known = self.state(head)
        if known is not None:
            return known
        try:
            after, model = await self._checked(published, transcript, state)
        except Violation as error:
            log.error(
                "the outcome of order %d does not hold, %s: %s. Orders that build on it will be"
                " declined",
                order.sequence,
                error.code,
                error.message,
            )
            self._memory.add_broken(head, error.code)
            raise
        if model is not None:
            self._keep(model)
        self._memory.add(after)
        return after

    async def _checked(
        self, published: Published, transcript: Transcript, state: State
    ) -> tuple[State, bytes | None]:
        """Verify one outcome, then the state it leads to and, where it changed, the model file."""
        order = published.order
        check_order(state, order)
        if order.dimension != self._job.dimension(Kind(order.kind)):
            raise Violation("bad-order", "the order's vector length is not the plan's")
        cohort = published.verify(transcript)
        self._on_transcript(order, transcript, cohort.context)
        await asyncio.sleep(0)
        with _as_evidence():
            published.spot_check(transcript, cohort, self._spot_checks, Csprng.from_os())
        await asyncio.sleep(0)
        with _as_evidence():
            before = self.model(state.model)
        rules = self._rules_of(before)
        vector = flatten(decode_model(before, rules.spec))
        del before
        if Kind(order.kind) is Kind.EVALUATE:
            return advance(rules, state, order, transcript, vector, None)[0], None
        with _as_evidence():
            total = published.total(transcript)
        after, vector = advance(rules, state, order, transcript, vector, total)
        return after, model_file(vector, rules.spec)

    def _keep(self, model: bytes) -> None:
        with contextlib.suppress(OSError):  # without room for it, it is fetched again
            self._memory.keep_model(model)

    def _rules_of(self, model: bytes) -> Rules:
        """The job's rules; any model of its history shows names and shapes."""
        if self._rules is None:
            self._rules = Rules(self._job.manifest, self._job.plan, spec_of(model))
        return self._rules
