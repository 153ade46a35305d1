"""The demo's planned accident: one site loses power in the middle of one round."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from fedflow.errors import FedflowError
from fedflow.exchange import Exchange, layout
from fedflow.site.admission import peek_order
from fedflow.wire.messages import Kind

_LOOK_SECONDS = 0.003


class Outage:
    """Kills a site between its shares and its masked update in training round ``round``.

    That is the hardest moment: every other site has masked against it, so the round must recover
    its masks. A thread watches the exchange; ``kill`` is called once, at that moment.
    """

    def __init__(
        self, exchange: Exchange, job: str, site: int, number: int, kill: Callable[[], None]
    ) -> None:
        self._exchange, self._job, self._site = exchange, job, site
        self._number, self._kill = number, kill
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self.done = False
        self._thread.start()

    def _wait(self) -> None:
        sequence = 1
        while not self._stop.wait(_LOOK_SECONDS):
            with contextlib.suppress(OSError, FedflowError):
                data = self._exchange.get(
                    layout.order(self._job, sequence), layout.MAX_SEALED_BYTES
                )
                if data is None:
                    continue
                order = peek_order(data)
                if (order.round, order.kind) != (self._number, Kind.TRAIN):
                    sequence += 1
                elif self._exchange.get(layout.up(self._job, sequence, "shares", self._site)):
                    self._kill()
                    self.done = True
                    return

    def close(self) -> None:
        """Give up waiting."""
        self._stop.set()
        self._thread.join()
