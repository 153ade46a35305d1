"""What a site computes for one order, and what it keeps of it for the next.

Training begins with the order and is given up with it; in asynchronous rounds it goes on from order
to order (:mod:`fedflow.site.ahead`), and the site comes only when it is done.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from fedflow.site.admission import Admitted
from fedflow.site.ahead import Ahead, weight_of
from fedflow.site.kept import Kept
from fedflow.site.mailbox import Missed
from fedflow.site.trainer import Trained
from fedflow.wire.messages import Kind, Order


class Trainer(Protocol):
    """Whatever trains and evaluates: a process of its own in a real site."""

    async def run(
        self,
        task: str,
        *,
        workload: str,
        data: Path,
        plan: bytes,
        model: bytes = b"",
        own: bytes = b"",
        sites: int = 0,
        value_range: float = 0.0,
    ) -> Trained:
        """The vector of ``train`` or ``evaluate``, float32 or int64; none of ``check``.

        ``own`` is what was kept last; what comes back of it is to be kept after this one.
        """


class Work:
    """The training or evaluation for one order. Missed when the site is busy with another."""

    def __init__(
        self,
        trainer: Trainer,
        job: Admitted,
        order: Order,
        *,
        data: Path,
        model: bytes,
        kept: Kept,
        ahead: Ahead,
    ) -> None:
        self._order, self._kept, self._ahead = order, kept, ahead
        kind = Kind(order.kind)
        self.comes_late = job.plan.is_asynchronous and kind is Kind.TRAIN
        own = kept.read()

        def start() -> asyncio.Future[Trained]:
            return asyncio.ensure_future(
                trainer.run(
                    kind.word,
                    workload=job.plan.plan.workload,
                    data=data,
                    plan=job.manifest.plan,
                    model=model,
                    own=own,
                    sites=len(job.manifest.roster),
                    value_range=order.value_range,
                )
            )

        if self.comes_late:
            self.trained = ahead.follow(order, job.plan.strategy.max_staleness, start)
        elif ahead.goes_on:
            raise Missed(kind.word)
        else:
            self.trained = start()

    @property
    def weight(self) -> float:
        """A factor on the site's own weight."""
        return weight_of(self._ahead.staleness(self._order)) if self.comes_late else 1.0

    async def stop(self) -> None:
        """The order is over: end what only it needs."""
        if self.comes_late:
            return
        if not self.trained.done():
            self.trained.cancel()
        await asyncio.gather(self.trained, return_exceptions=True)

    def released(self) -> None:
        """What was trained is in a release that was paid for."""
        if self.comes_late:
            self._ahead.spent()

    def summed(self, own: bytes) -> None:
        """That release is in a sum: keep what goes with it."""
        self._kept.write(own)
