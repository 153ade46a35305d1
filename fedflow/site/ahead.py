"""Training that no single order waits for: what asynchronous rounds (FedBuff) need of a site.

Nguyen et al., "Federated learning with buffered asynchronous aggregation" (AISTATS 2022): a site
trains from the newest model it has and takes part in whatever order is open when it is done. Its
update, s rounds old then, weighs 1/sqrt(1 + s). It is one update with one charge however long it
took, made under the job's plan, so nothing about its privacy depends on when it is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fedflow.site.trainer import Trained
from fedflow.wire.messages import Order


class Ahead:
    """One training at a time, which goes on while orders come and go."""

    def __init__(self) -> None:
        self._round = 0
        self._training: asyncio.Future[Trained] | None = None

    def follow(
        self, order: Order, most: int, start: Callable[[], Awaitable[Trained]]
    ) -> asyncio.Future[Trained]:
        """The training that goes on, or a new one from this order's model.

        One from a model more than ``most`` rounds ago is given up: it would hardly count.
        """
        training = self._training
        failed = training is not None and training.done() and not _worked(training)
        if training is None or failed or order.round - self._round > most:
            self.cancel()
            self._round = order.round
            self._training = training = asyncio.ensure_future(start())
        return training

    @property
    def goes_on(self) -> bool:
        """Whether something is being trained."""
        return self._training is not None and not self._training.done()

    def staleness(self, order: Order) -> int:
        """How many rounds ago the training began."""
        return order.round - self._round

    def spent(self) -> None:
        """What was trained is in a release: the next order starts anew."""
        self._training = None

    def cancel(self) -> None:
        """End what goes on."""
        training, self._training = self._training, None
        if training is not None:
            training.cancel()


def _worked(training: asyncio.Future[Trained]) -> bool:
    return not training.cancelled() and training.exception() is None


def weight_of(staleness: int) -> float:
    """What an update that is so many rounds old weighs, against 1 for a fresh one."""
    return float((1 + staleness) ** -0.5)
