"""Who is a member now, and who takes part in a job: read from the store, verified, remembered."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Refusal, Violation
from fedflow.exchange import layout
from fedflow.relay.access import JobFacts, Party
from fedflow.relay.store import Store
from fedflow.wire.membership import FederationRoster, Role
from fedflow.wire.messages import Manifest
from fedflow.wire.sealed import unseal

log = logging.getLogger("fedflow.relay")

#: How often the store is looked into for a roster that somebody else put there (seconds).
LOOK_SECONDS = 2.0
#: Jobs whose manifests are remembered.
MOST_JOBS = 256


class Members:
    """The newest roster that the authority signed. It never goes back to an older one."""

    def __init__(self, store: Store, authority: PublicKey) -> None:
        self._store, self.authority = store, authority
        self.roster: FederationRoster | None = None
        self._looked = float("-inf")

    async def refresh(self, *, at_once: bool = False) -> None:
        """Look for a newer roster, at most every ``LOOK_SECONDS``. OSError as the store."""
        if not at_once and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        known = 0 if self.roster is None else self.roster.serial
        names = await self._store.names(layout.federation_rosters())
        for serial in reversed(layout.sequences(names)):
            if serial <= known:
                break
            try:
                data = await self._store.get(layout.federation_roster(serial))
                if data is not None:
                    self.adopt(self.read(data, serial))
                    break
            except Violation as error:
                log.warning("roster %d in the store is not valid: %s", serial, error)
        self._looked = time.monotonic()

    def read(self, data: bytes, serial: int | None = None) -> FederationRoster:
        """A roster as the authority signed it; Violation otherwise, or for another serial."""
        roster = unseal(FederationRoster, data, self.authority)
        if serial is not None and roster.serial != serial:
            raise Violation("wrong-place", "the roster has another serial than its name")
        if self.roster is not None and self.roster.federation != roster.federation:
            raise Violation("wrong-federation", "the roster is of another federation")
        return roster

    def adopt(self, roster: FederationRoster) -> None:
        """From now on this roster counts, if it is newer."""
        if self.roster is None or roster.serial > self.roster.serial:
            self.roster = roster
            log.info("roster %d of %s: %d members", *_shown(roster))

    def party(self, key: bytes, now: float) -> Party:
        """Whose key this is; Refusal, with a reason its owner understands, when it does not count.

        The authority's own key needs no entry.
        """
        if key == self.authority.raw:
            return Party(key, None, "authority")
        member = None if self.roster is None else self.roster.member(key)
        if member is None:
            raise Refusal("not-a-member", "this key is not in the federation's member list")
        if member.revoked and member.revoked <= now:
            raise Refusal("revoked", "this key was revoked by the federation's authority")
        if now >= member.not_after:
            raise Refusal("expired", "this membership has expired; ask the authority to renew it")
        if now < member.not_before:
            raise Refusal("not-yet", "this membership has not begun yet")
        return Party(key, Role(member.role), member.label)

    def check_manifest(self, manifest: Manifest, now: float) -> None:
        """Refusal unless every key in a new manifest is an active member's, in its role."""
        expected = [(manifest.coordinator, Role.COORDINATOR, "its coordinator")]
        expected += [(e.public_key, Role.SITE, f"site {e.label}") for e in manifest.roster]
        members = () if self.roster is None else self.roster.members
        known = {m.public_key: m for m in members}
        for key, role, who in expected:
            member = known.get(key)
            if member is None or member.role != role or not member.is_active(now):
                raise Refusal("not-a-member", f"{who} in the manifest is no active {role.word}")


def _shown(roster: FederationRoster) -> tuple[int, str, int]:
    return roster.serial, roster.federation, len(roster.members)


class Jobs:
    """What the manifests in the store say. A manifest is put once, so what was read stays true."""

    def __init__(self, store: Store, authority: PublicKey) -> None:
        self._store, self._authority = store, authority
        self._known: OrderedDict[str, JobFacts] = OrderedDict()

    async def facts(self, job: str) -> JobFacts | None:
        """What the authority signed for this job; None when there is no such manifest."""
        known = self._known.get(job)
        if known is None:
            data = await self._store.get(layout.manifest(job))
            if data is None:
                return None
            try:
                known = self.read(job, data)[1]
            except Violation as error:
                log.warning("the manifest of job %s is not valid: %s", job, error)
                return None
            self._known[job] = known
        self._known.move_to_end(job)
        if len(self._known) > MOST_JOBS:
            self._known.popitem(last=False)
        return known

    def read(self, job: str, data: bytes) -> tuple[Manifest, JobFacts]:
        """A manifest that the authority signed for ``job``; Violation otherwise."""
        manifest = unseal(Manifest, data, self._authority)
        if manifest.job != job:
            raise Violation("manifest-mismatch", "the manifest is of another job")
        sites = {entry.public_key: entry.index for entry in manifest.roster}
        return manifest, JobFacts(manifest.coordinator, sites, manifest.not_after)

    def forget(self, job: str) -> None:
        """The job was removed."""
        self._known.pop(job, None)
