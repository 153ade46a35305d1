"""One job at a site, from manifest to end: admit, counter-sign, answer orders, leave.

A session survives anything the coordinator or the exchange does: a bad order costs that order, a
refusal is answered with a signed reason, and only the end of the job, the operator, cancellation or
an exhausted budget ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from dataclasses import dataclass

from fedflow.errors import FedflowError, Refusal, Violation
from fedflow.exchange import base, layout
from fedflow.orders import newest_order
from fedflow.secagg.positions import ROLLBACK, RolledBack
from fedflow.site.admission import Admitted, admit_manifest, admit_order, peek_order
from fedflow.site.ahead import Ahead
from fedflow.site.budget import commit_plans, open_accounts
from fedflow.site.config import SiteFolder
from fedflow.site.following import Following
from fedflow.site.hearing import hear_of_members
from fedflow.site.mailbox import LONGEST_WAIT, Missed, aside, fetch, in_thread, send
from fedflow.site.reasons import public_reason
from fedflow.site.round import Progress, SiteServices, take_part
from fedflow.site.spool import clear_leftovers
from fedflow.wire.messages import (
    STOPPED,
    Countersignature,
    Decline,
    Hello,
    JobEnd,
    farewell,
    labelled_hash,
    leaves_job,
)
from fedflow.wire.sealed import seal, unseal

log = logging.getLogger("fedflow.site")

#: How long to wait for a manifest that was announced but is not in the exchange yet (seconds).
MANIFEST_SECONDS = 30.0
#: How long a site that is stopped tries to say so (seconds).
FAREWELL_SECONDS = 2.0


@dataclass(frozen=True)
class SessionEnd:
    """How a session ended: ``completed``, ``refused``, ``cancelled`` or ``error``, and why."""

    outcome: str
    code: str = ""
    reason: str = ""


class Session:
    """The site's part in one job."""

    def __init__(
        self,
        site: SiteFolder,
        services: SiteServices,
        job: str,
        manifest: bytes | None,
        progress: Progress,
    ) -> None:
        self._site = site
        self._services = services
        self._job = job
        self._manifest = manifest
        self._progress = progress
        # Claims of this start carry it: an order claimed by an earlier start reads as a replay.
        self._start = secrets.token_bytes(32)
        self._ahead = Ahead()

    async def run(self) -> SessionEnd:
        """Take part until the job ends; never raises but for cancellation."""
        admitted: Admitted | None = None
        try:
            admitted = await self._admit()
            following = Following(
                self._services.history,
                self._services.exchange,
                admitted,
                spot_checks=self._services.spot_check_chunks,
                on_transcript=self._services.anchoring(admitted).learn,
            )
            first = await self._where_to_join(admitted)
            return await self._answer_orders(admitted, following, first)
        except asyncio.CancelledError:
            if admitted is not None:
                await self._say_farewell(admitted)
            return SessionEnd("cancelled", "cancelled", "ended on request")
        except Missed:
            return SessionEnd("error", "no-manifest", "the job's manifest is not in the exchange")
        except Exception as error:
            _note(f"session of job {self._job}", error)
            code, reason = public_reason(error)
            outcome = "refused" if isinstance(error, Refusal | Violation) else "error"
            return SessionEnd(outcome, code, reason)
        finally:
            self._ahead.cancel()

    async def _admit(self) -> Admitted:
        services = self._services
        data = await fetch(
            services.exchange,
            layout.manifest(self._job),
            until=time.time() + MANIFEST_SECONDS,
            poll=services.poll_seconds,
            limit=layout.MAX_MANIFEST_BYTES,
        )
        await hear_of_members(self._site, services.exchange)
        admitted = admit_manifest(self._site, data, self._job, self._manifest)
        await self._hold_ledger(admitted)
        dataset = self._site.policy.datasets[admitted.dataset]
        open_accounts(dataset, services.ledger, admitted)
        # The data must be readable before the site promises anything.
        await services.trainer.run(
            "check",
            workload=admitted.plan.plan.workload,
            data=self._site.dataset(admitted.dataset),
            plan=admitted.manifest.plan,
        )
        # Bound to one manifest per job id, durably: a second one under the same name is refused.
        services.facts.claim("manifest", labelled_hash("job", self._job.encode()), admitted.digest)
        commit_plans(dataset, services.ledger, admitted)
        until, poll = time.time() + MANIFEST_SECONDS, services.poll_seconds
        identity, exchange = services.identity, services.exchange
        bound = seal(identity, Countersignature(admitted.digest, admitted.index))
        key = layout.countersign(self._job, admitted.index)
        await send(exchange, key, bound, until=until, poll=poll)
        hello = seal(identity, Hello(admitted.digest, admitted.index, self._start))
        key = layout.hello(self._job, admitted.index, self._start)
        await send(exchange, key, hello, until=until, poll=poll)
        log.info("joined job %s as site %d", self._job, admitted.index)
        return admitted

    async def _say_farewell(self, job: Admitted) -> None:
        """Say that nobody need wait for this start any more. It is a courtesy: it may fail."""
        session = farewell(self._start)
        hello = seal(self._services.identity, Hello(job.digest, job.index, session))
        key = layout.hello(self._job, job.index, session)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await base.put(self._services.exchange, key, hello)

    async def _hold_ledger(self, job: Admitted) -> None:
        """Refusal unless the ledger is the newest, as far as this site's own signatures show."""
        anchoring = self._services.anchoring(job)
        anchoring.position()
        while True:
            try:
                exchange = self._services.exchange
                return await aside(exchange, anchoring.search(exchange))
            except OSError:  # it is waited for, as nothing can be done without it
                if time.time() > job.manifest.not_after:
                    raise
                await asyncio.sleep(max(self._services.poll_seconds, 0.2))

    async def _answer_orders(
        self, job: Admitted, following: Following, sequence: int
    ) -> SessionEnd:
        while True:
            clear_leftovers(self._services.spool, self._services.ledger)
            data = await self._next(job, following, sequence)
            if isinstance(data, SessionEnd):
                return data
            try:
                order = admit_order(job, self._services.ledger, data, sequence)
                # First, because nothing leaves yet: after a crash here the order is still open.
                vouches = await aside(self._services.exchange, following.prepare(order))
                slot = labelled_hash("slot", job.digest + sequence.to_bytes(4, "big"))
                self._services.facts.claim("order", slot, order.digest() + self._start)
                if order.invites(job.index):
                    await self._progress(order.round, "admitted")
                    await take_part(
                        self._services,
                        job,
                        order,
                        self._site.dataset(job.dataset),
                        self._progress,
                        following,
                        vouches=vouches,
                        ahead=self._ahead,
                    )
                else:
                    log.info("order %d is for others", sequence)
            except asyncio.CancelledError:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_SECONDS):
                        await self._decline(job, data, sequence, STOPPED, "the site was stopped")
                raise
            except Missed as missed:
                log.warning("order %d went on without this site (%s)", sequence, missed)
            except FedflowError as error:
                _note(f"order {sequence}", error)
                code, reason = public_reason(error)
                sites = error.sites if isinstance(error, RolledBack) else ()
                ended = code == ROLLBACK and isinstance(error, Refusal)
                sites = (job.index,) if ended else sites
                await self._decline(job, data, sequence, code, reason, sites)
                if ended:
                    return SessionEnd("refused", code, reason)
                # Only an order that verified can have been refused for lack of budget.
                if code == "budget-exhausted" and leaves_job(peek_order(data).kind, code):
                    return SessionEnd("refused", code, reason)
            except OSError as error:
                log.warning("order %d: the exchange or the disk failed: %s", sequence, error)
            sequence += 1

    async def _where_to_join(self, job: Admitted) -> int:
        """The newest order that is still open, else the one after it (1 in a fresh job)."""
        exchange = self._services.exchange
        while True:
            try:
                newest = await in_thread(
                    exchange, newest_order, exchange, self._job, job.digest, job.coordinator
                )
                if newest is None:
                    return 1
                still_open = newest.deadline / 1000 > time.time()
                return newest.sequence if still_open else newest.sequence + 1
            except OSError:
                if time.time() > job.manifest.not_after:
                    return 1
                await asyncio.sleep(max(self._services.poll_seconds, 0.2))

    async def _next(self, job: Admitted, following: Following, sequence: int) -> bytes | SessionEnd:
        """The next order's bytes, or how the job ended. An unreachable exchange is waited for.

        While there is neither, the outcome of the order before is checked as soon as it is there.
        """
        exchange, poll = self._services.exchange, self._services.poll_seconds
        outcome = (layout.transcript(self._job, sequence - 1),) if sequence > 1 else ()
        first = time.monotonic()
        while (left := job.manifest.not_after - time.time()) >= 0:
            began, news = time.monotonic(), (layout.end(self._job), *outcome)
            try:
                data = await base.wait(
                    exchange,
                    layout.order(self._job, sequence),
                    layout.MAX_SEALED_BYTES,
                    seconds=min(left, LONGEST_WAIT),
                    poll=base.pause(exchange, poll, began - first),
                    unless=news,
                )
            except Violation:
                data = b""  # a damaged order is an order that cannot be admitted
            except OSError:
                data = None
                await asyncio.sleep(max(poll, 0.2) if exchange.remote else poll)
            if data is not None:
                return data
            with contextlib.suppress(OSError, Violation):
                end = await base.get(exchange, news[0], layout.MAX_SEALED_BYTES)
                if end is not None:
                    message = unseal(JobEnd, end, job.coordinator)
                    if message.manifest == job.digest:
                        await aside(exchange, following.look(at_once=True))
                        if not following.is_final(message.model):
                            log.warning("the job's final model is not one this site computed")
                        log.info("job %s ended: %s", self._job, message.outcome)
                        return SessionEnd("completed", message.outcome)
            waited = time.monotonic() - began
            came = exchange.remote and bool(outcome) and waited < min(left, LONGEST_WAIT) / 2
            await aside(exchange, following.look(at_once=came))
            if came:
                outcome = ()  # looked for at longer intervals from now on, as whatever is missing
            elif exchange.remote and waited < poll:
                await asyncio.sleep(poll)
        return SessionEnd("completed", "manifest-expired", "the job's time window is over")

    async def _decline(
        self,
        job: Admitted,
        data: bytes,
        sequence: int,
        code: str,
        reason: str,
        rolled_back: tuple[int, ...] = (),
    ) -> None:
        with contextlib.suppress(Exception):
            exchange, order = self._services.exchange, peek_order(data)
            key = layout.up(self._job, sequence, "decline", job.index)
            if await base.get(exchange, key, layout.MAX_SEALED_BYTES) is not None:
                return  # an earlier start of this site said why: that stands
            answer = Decline(order.digest(), job.index, code, reason, rolled_back)
            await base.put(exchange, key, seal(self._services.identity, answer))


def _note(what: str, error: Exception) -> None:
    """Write down why something was declined, for the operator: in full, this log stays here."""
    if isinstance(error, Refusal | Violation):
        log.warning("%s declined, %s: %s", what, error.code, error.message)
    else:
        log.error("%s failed", what, exc_info=error)
