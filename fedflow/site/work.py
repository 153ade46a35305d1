"""What a site computes for one order, and what it keeps of it for the next.

Training begins with the order and is given up with it; in asynchronous rounds it goes on from order
to order (:mod:`fedflow.site.ahead`), and the site comes only when it is done.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from fedflow.learning.model_file import Arrays
from fedflow.site.admission import Admitted
from fedflow.site.ahead import Ahead, weight_of
from fedflow.site.kept import Kept
from fedflow.site.mailbox import Missed
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
    ) -> npt.NDArray[Any]:
        """The vector of ``train`` or ``evaluate``, float32 or int64; none of ``check``."""


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
        self._job, self._order, self._kept, self._ahead = job, order, kept, ahead
        kind = Kind(order.kind)
        self.comes_late = job.plan.is_asynchronous and kind is Kind.TRAIN
        own = kept.read()
        # Both are as large as the update, and only some strategies need them after training.
        self._from = (model, own) if job.plan.keeps_at_sites and kind is Kind.TRAIN else None

        def start() -> asyncio.Future[npt.NDArray[Any]]:
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
            self.vector = ahead.follow(order, job.plan.strategy.max_staleness, start)
        elif ahead.goes_on:
            raise Missed(kind.word)
        else:
            self.vector = start()

    @property
    def weight(self) -> float:
        """A factor on the site's own weight."""
        return weight_of(self._ahead.staleness(self._order)) if self.comes_late else 1.0

    async def stop(self) -> None:
        """The order is over: end what only it needs."""
        if self.comes_late:
            return
        if not self.vector.done():
            self.vector.cancel()
        await asyncio.gather(self.vector, return_exceptions=True)

    def released(self, vector: npt.NDArray[Any]) -> Arrays | None:
        """``vector`` is in a release that was paid for; what to keep once that is in a sum."""
        if self.comes_late:
            self._ahead.spent()
        if self._from is None:
            return None
        return self._kept.after(self._order, *self._from, vector)
