"""Who is there: the sites whose signed presence messages were seen, and those that left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from fedflow.coordinator.job import Job
from fedflow.errors import FedflowError
from fedflow.exchange import Exchange, layout
from fedflow.wire.messages import Hello, farewell
from fedflow.wire.sealed import unseal


class Presence:
    """Site indices believed present. ``arrived`` is told each site whose message is new."""

    def __init__(self, exchange: Exchange, job: Job, arrived: Callable[[int], None]) -> None:
        self._exchange, self._job, self._arrived = exchange, job, arrived
        self._seen: set[str] = set()
        self._said: dict[int, set[bytes]] = {}
        self._newest: dict[int, bytes] = {}
        self.present: set[int] = set()
        self.left: set[int] = set()

    def look(self) -> set[int]:
        """Read new presence messages; returns the indices believed present.

        While the exchange is down nobody new comes.
        """
        folder, news = layout.hellos(self._job.id), []
        with contextlib.suppress(OSError):
            for name in self._exchange.list(folder):
                index = name.split("-")[0]
                if name in self._seen or not index.isdecimal():
                    continue
                if int(index) in self._job.roster:
                    news += self._read(f"{folder}/{name}", int(index))
                self._seen.add(name)
        for hello in news:
            self._said.setdefault(hello.site, set()).add(hello.session)
        for hello in news:
            self._take(hello)
        return set(self.present)

    def _take(self, hello: Hello) -> None:
        site, said = hello.site, self._said[hello.site]
        if hello.session in {farewell(session) for session in said}:
            if farewell(self._newest.get(site, b"")) == hello.session:
                self.present.discard(site)  # until its next start
        elif farewell(hello.session) not in said:
            self._newest[site] = hello.session
            self.present.add(site)
            self.left.discard(site)
            self._arrived(site)

    def _read(self, key: str, site: int) -> list[Hello]:
        try:
            data = self._exchange.get(key, layout.MAX_SEALED_BYTES)
            hello = unseal(Hello, data or b"", self._job.roster[site])
        except FedflowError:
            return []  # not that site's signature: not its presence
        return [hello] if (hello.manifest, hello.site) == (self._job.digest, site) else []

    @property
    def can_come(self) -> int:
        """How many sites have not left the job."""
        return len(self._job.roster) - len(self.left)

    def after_round(self, still_there: set[int], left: set[int]) -> None:
        """Whoever fell silent, or left the job, is waited for again only after its next hello."""
        self.present = still_there
        self.left |= left
