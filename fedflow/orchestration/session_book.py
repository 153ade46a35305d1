"""Which session run of which site is open: opened per job, replaced when a site was lost.

All of it is done behind the rounds and caught up with later: a job does not wait for a Prefect
server, and does not end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient

from fedflow.orchestration.registration import register_site
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.orchestration.sessions import (
    SessionState,
    cancel_session,
    close_session,
    open_session,
    session_state,
    session_states,
)

#: Seconds between two looks at the sessions, or two tries at what the server did not take.
LOOK_SECONDS = 5.0
#: How long one request may take, with the client's own retries.
REQUEST_SECONDS = 30.0
#: Sessions opened at one site by one process, at most.
MOST_SESSIONS = 100

_log = logging.getLogger(__name__)


class SessionBook:
    """The session flow runs of one job, by site label. Does nothing until it is :meth:`keep`-ing.

    ``sites`` are empty for a job whose sites all come without Prefect.
    """

    def __init__(self, job: str, manifest: str, sites: Iterable[str]) -> None:
        self._job, self._manifest = job, manifest
        self._sites = sorted(sites)
        self._registered: set[str] = set()
        self._lost: dict[str, str] = {}
        self._news = asyncio.Event()
        self.open: dict[str, UUID] = {}
        self.attempts: dict[str, int] = {}

    def lost(self, site: str, why: str) -> None:
        """Note that a site went away: its session is closed as ``Dropped``, a new one queued."""
        if site in self._sites:
            self._lost[site] = why
            self._news.set()

    async def keep(self) -> None:
        """Open, close and replace sessions for as long as this is not cancelled."""
        while True:
            self._news.clear()
            with contextlib.suppress(Exception):
                # One client for all: making one takes longer than what is asked of it.
                async with scrubbed_client() as client:
                    for site in self._due():  # one at a time: an SQLite server takes one writer
                        await self._try(self._serve(site, client))
            await self._try(self._replace_crashed())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), LOOK_SECONDS)

    async def _try(self, step: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await step
        except Exception as error:
            _log.debug("sessions: %s; tried again", type(error).__name__)

    def _due(self) -> list[str]:
        """The sites for which something is to be done."""
        return [s for s in self._sites if s not in self.open or s in self._lost]

    async def _serve(self, site: str, client: PrefectClient) -> None:
        if site not in self._registered:
            await register_site(site, client)
            self._registered.add(site)
        if site not in self.open:
            await self._start(site, client)
        elif site in self._lost:
            await self._replace(site, self._lost[site], client)
            self._lost.pop(site, None)

    async def _start(self, site: str, client: PrefectClient | None = None) -> None:
        """Ask the site's worker, through Prefect, to open a session.

        The first numbers may belong to a coordinator before this one: a session of it that is open
        is gone on with, and one that has ended is not opened again.
        """
        attempt = self.attempts.get(site, 0)
        while attempt < MOST_SESSIONS:
            attempt += 1
            run = await open_session(site, self._job, self._manifest, attempt, client)
            self.attempts[site], self.open[site] = attempt, run
            if not (await session_state(run, client)).is_final:
                return

    async def _replace(self, site: str, why: str, client: PrefectClient) -> None:
        """Close a lost site's session as ``Dropped`` and queue a new one for when it returns.

        A session that ended by itself (refused, say) keeps its own state and is not replaced.
        """
        run = self.open[site]
        state = await session_state(run, client)
        if state.type in {"SCHEDULED", "PENDING"}:
            return  # its new session is queued already
        if state.is_final and state.type != "CRASHED":
            return
        await close_session(run, "Dropped", why)
        await self._start(site, client)

    async def _replace_crashed(self) -> None:
        """Queue a session for every site whose worker went away; the site may be there yet."""
        states = await session_states(self.open.values())
        for site, run in list(self.open.items()):
            if run in states and states[run].type == "CRASHED":
                await self._start(site)

    async def finish(self, seconds: float) -> dict[str, SessionState]:
        """Wait for the sessions to end by themselves; cancel those that do not.

        One that no worker has taken will not end: it is cancelled at once. Returns each site's last
        known state, nothing while the server is away.
        """
        states: dict[UUID, SessionState] = {}
        until = asyncio.get_running_loop().time() + seconds
        with contextlib.suppress(Exception):
            async with asyncio.timeout(seconds + REQUEST_SECONDS):
                while True:
                    states = await session_states(self.open.values())
                    waiting = [run for run, state in states.items() if not state.is_final]
                    late = asyncio.get_running_loop().time() > until
                    for run in waiting:
                        if late or states[run].type == "SCHEDULED":
                            await cancel_session(run)
                    if late or not waiting:
                        break
                    await asyncio.sleep(0.5)
        return {site: states[run] for site, run in self.open.items() if run in states}
