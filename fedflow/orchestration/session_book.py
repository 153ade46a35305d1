"""Which session run of which site is open: opened per job, replaced when a site was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID

from fedflow.orchestration.registration import register_sites
from fedflow.orchestration.sessions import (
    SessionState,
    cancel_session,
    close_session,
    open_session,
    session_state,
    session_states,
)


@dataclass
class SessionBook:
    """The session flow runs of one job, by site label."""

    job: str
    manifest: str
    open: dict[str, UUID] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)

    async def start_all(self, sites: Iterable[str]) -> None:
        """Register the sites with the server and open a session at each."""
        names = sorted(sites)
        await register_sites(names)
        for site in names:  # one after the other: an SQLite server takes one writer
            await self.start(site)

    async def start(self, site: str) -> None:
        """Ask the site's worker, through Prefect, to open a session."""
        self.attempts[site] = self.attempts.get(site, 0) + 1
        self.open[site] = await open_session(site, self.job, self.manifest, self.attempts[site])

    async def replace(self, site: str, why: str) -> None:
        """Close a lost site's session as ``Dropped`` and queue a new one for when it returns.

        A session that ended by itself (refused, say) keeps its own state and is not replaced.
        """
        run = self.open.get(site)
        if run is None:
            return
        state = await session_state(run)
        if state.type in {"SCHEDULED", "PENDING"}:
            return  # its new session is queued already
        if state.is_final and state.type != "CRASHED":
            return
        await close_session(run, "Dropped", why)
        await self.start(site)

    async def finish(self, seconds: float) -> dict[str, SessionState]:
        """Wait for the sessions to end by themselves; cancel those that do not.

        Returns each site's last state.
        """
        until = asyncio.get_running_loop().time() + seconds
        while True:
            states = await session_states(self.open.values())
            open_still = [run for run, state in states.items() if not state.is_final]
            if not open_still or asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(0.5)
        for run in open_still:
            await cancel_session(run)
        return {site: states[run] for site, run in self.open.items() if run in states}
