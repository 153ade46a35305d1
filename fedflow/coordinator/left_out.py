"""Which sites a round is better off without: members no more, or with ledgers gone back.

A site whose key the newest list of members shows as revoked or expired is not asked again.

Sites refuse a roster with such a site in it, and so the round would end. The coordinator remembers
positions as they do, and leaves the site out first. What it does not remember itself it believes
when more sites say it than may collude: one of them is honest, and has seen it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from fedflow.anchors import Anchors
from fedflow.coordinator.job import Job
from fedflow.errors import FedflowError, Refusal, Violation
from fedflow.exchange import Exchange
from fedflow.federation.members import RosterMemory, successions
from fedflow.secagg.messages import Advert
from fedflow.secagg.positions import ROLLBACK, Position, RolledBack, refuse_older, shown, stated
from fedflow.wire.membership import FederationRoster
from fedflow.wire.messages import Decline

log = logging.getLogger("fedflow.coordinator")

#: How often the exchange is looked into for a newer list of members (seconds).
LOOK_SECONDS = 5.0


class LeftOut:
    """The ledger positions of a job's sites. ``reasons`` says who is left out, and why.

    A memory that cannot be read or written costs attempts and nothing else: sites check themselves.
    ``members`` is what the coordinator has seen of the federation's members, and ``exchange`` where
    it looks for a newer list; without them nobody is left out as no member.
    """

    def __init__(
        self,
        path: Path,
        job: Job,
        members: RosterMemory | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self._anchors, self._job = Anchors(path), job
        self._members, self._exchange = members, exchange
        self._looked = float("-inf")
        self._roster: FederationRoster | None = None
        self._floors: dict[int, Position] = {}
        self._adverts: dict[int, Advert] = {}
        self._named: dict[int, tuple[Position, str]] = {}
        self.reasons: dict[int, str] = {}
        try:
            self._floors = self._anchors.floors(job.roster)
        except Refusal as error:
            log.warning("%s", error.message)

    def begin(self) -> None:
        """Another order: its adverts are judged anew, by all that was seen so far."""
        self._adverts, self.reasons = {}, self.barred()

    def barred(self) -> dict[int, str]:
        """The sites whose keys count no more, and why, by the newest list there is."""
        self._look()
        roster, now, found = self._roster, time.time(), {}
        for site, key in self._job.roster.items():
            member = None if roster is None else roster.member(key.raw)
            if member is not None and member.revoked and member.revoked <= now:
                found[site] = "its key was revoked by the federation's authority"
            elif member is not None and member.not_after <= now:
                found[site] = "its membership has ended; the authority can renew it"
        return found

    def _look(self) -> None:
        if self._members is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            self._roster = self._members.newest()
            if self._exchange is not None:
                self._roster = self._members.refresh(self._exchange)
            if self._roster is not None:
                self._anchors.succeed(successions(self._roster))
                self._floors |= self._anchors.floors(self._job.roster)
        except (FedflowError, OSError) as error:
            log.warning("the list of members: %s", error)

    def check(self, advert: Advert) -> None:
        """Violation for a verified advert that cannot be in the order's roster.

        ``RolledBack`` when it is for what the site said of its ledger.
        """
        site = advert.site
        if site in self.barred():
            raise Violation("revoked-key", f"site {site}: {self.barred()[site]}")
        try:
            refuse_older({site: advert}, self._floors)
            position, reason = self._named.get(site, (None, ""))
            if position == stated(advert):
                raise RolledBack([site], reason)
        except RolledBack as error:
            self.reasons[site] = error.message
            raise
        self._adverts[site] = advert

    def remember(self, cohort: Iterable[int], survivors: Collection[int] = ()) -> None:
        """Remember where the cohort is; ``survivors`` signed a masked vector as well."""
        positions = shown((self._adverts[site] for site in cohort), survivors)
        for site, position in positions.items():
            self._floors[site] = self._floors.get(site, position).raised(position)
        try:
            self._anchors.seen(self._job.roster, positions)
        except Refusal as error:
            log.warning("%s", error.message)

    def believe(self, declined: Iterable[Decline]) -> None:
        """Leave out whom more sites name than may collude, until it states another position."""
        refusals = [decline for decline in declined if decline.code == ROLLBACK]
        named = Counter(site for decline in refusals for site in decline.rolled_back)
        for site, count in named.items():
            if site in self._adverts and count > self._job.plan.cohort.colluders:
                position = stated(self._adverts[site])
                reason = (
                    f"{count} sites have seen site {site}'s ledger further than {position.entries}"
                    " entries, or another one"
                )
                self._named[site], self.reasons[site] = (position, reason), reason
