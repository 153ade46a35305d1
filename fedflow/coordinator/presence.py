"""Who is there: the sites whose signed presence messages were seen, and those that left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from fedflow.coordinator.job import Job
from fedflow.errors import FedflowError
from fedflow.exchange import Exchange, layout
from fedflow.wire.messages import Hello
from fedflow.wire.sealed import unseal


class Presence:
    """Site indices believed present. ``arrived`` is told each site whose message is new."""

    def __init__(self, exchange: Exchange, job: Job, arrived: Callable[[int], None]) -> None:
        self._exchange, self._job, self._arrived = exchange, job, arrived
        self._seen: set[str] = set()
        self.present: set[int] = set()
        self.left: set[int] = set()

    def look(self) -> set[int]:
        """Read new presence messages; returns the indices believed present.

        While the exchange is down nobody new comes.
        """
        folder = layout.hellos(self._job.id)
        with contextlib.suppress(OSError):
            for name in self._exchange.list(folder):
                index = name.split("-")[0]
                if name in self._seen or not index.isdecimal():
                    continue
                if int(index) in self._job.roster:
                    self._take(f"{folder}/{name}", int(index))
                self._seen.add(name)
        return set(self.present)

    def _take(self, key: str, site: int) -> None:
        try:
            data = self._exchange.get(key, layout.MAX_SEALED_BYTES)
            hello = unseal(Hello, data or b"", self._job.roster[site])
        except FedflowError:
            return  # not that site's signature: not its presence
        if hello.manifest == self._job.digest and hello.site == site:
            self.present.add(site)
            self.left.discard(site)
            self._arrived(site)

    @property
    def can_come(self) -> int:
        """How many sites have not left the job."""
        return len(self._job.roster) - len(self.left)

    def after_round(self, still_there: set[int], left: set[int]) -> None:
        """Whoever fell silent, or left the job, is waited for again only after its next hello."""
        self.present = still_there
        self.left |= left
