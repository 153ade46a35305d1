"""The demo's planned accident: one site loses power in the middle of one round, and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fedflow.exchange import Exchange, layout


class Outage:
    """Kills a site between its shares and its masked update of one order: the hardest moment.

    By then every other site has masked against it, so the round must recover its masks. A thread
    watches the exchange; ``kill`` is called once, at that moment.
    """

    def __init__(self, exchange: Exchange, job: str, site: int, kill: Callable[[], None]) -> None:
        self._exchange, self._job, self._site, self._kill = exchange, job, site, kill
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.done = False

    def arm(self, sequence: int) -> None:
        """Strike in the order with this sequence number."""
        self._thread = threading.Thread(target=self._wait, args=(sequence,), daemon=True)
        self._thread.start()

    def _wait(self, sequence: int) -> None:
        key = layout.up(self._job, sequence, "shares", self._site)
        while not self._stop.is_set():
            if self._exchange.get(key) is not None:
                self._kill()
                self.done = True
                return
            time.sleep(0.002)

    def close(self) -> None:
        """Give up waiting."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
