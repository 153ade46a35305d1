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

import httpx
from prefect.client.orchestration import PrefectClient

from fedflow.orchestration.configuration import SessionParameters
from fedflow.orchestration.registration import Known, look_up, register_site
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.orchestration.sessions import (
    SessionState,
    cancel_session,
    close_session,
    open_at,
    session_state,
    session_states,
)

#: Seconds between two looks at the sessions, or two tries at what the server did not take.
LOOK_SECONDS = 5.0
#: How long one request may take, with the client's own retries.
REQUEST_SECONDS = 30.0
#: Sites served at a time. One, from the first time on that the server answers "later": an SQLite
#: server takes one writer.
AT_ONCE = 8
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
        self._deployments: dict[str, UUID] = {}
        self._at_once = AT_ONCE
        self._lost: dict[str, str] = {}
        self._news = asyncio.Event()
        self.open: dict[str, UUID] = {}
        self.attempts: dict[str, int] = {}
        #: Set when every site has been asked.
        self.complete = asyncio.Event()
        if not self._sites:
            self.complete.set()

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
                    client._client.event_hooks["response"].append(self._narrow)
                    await self._serve_due(client)
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

    async def _serve_due(self, client: PrefectClient) -> None:
        """Serve all sites that are due, several at a time."""
        due = self._due()
        new = [site for site in due if site not in self._deployments]
        async with asyncio.timeout(REQUEST_SECONDS):
            known = await look_up(new, client) if new else None
        waiting = iter(due)

        async def some(place: int) -> None:
            for site in waiting:
                await self._try(self._serve(site, client, known))
                if place >= self._at_once:
                    return

        await asyncio.gather(*(some(place) for place in range(min(self._at_once, len(due)))))

    async def _narrow(self, response: httpx.Response) -> None:
        """Response hook: one at a time from now on, when the server says "later"."""
        if response.status_code in (429, 503):
            self._at_once = 1

    async def _serve(self, site: str, client: PrefectClient, known: Known | None = None) -> None:
        if site not in self._deployments:
            self._deployments[site] = await register_site(site, client, known)
        if site not in self.open:
            await self._start(site, client)
        elif site in self._lost:
            await self._replace(site, self._lost[site], client)
            self._lost.pop(site, None)
        if len(self.open) == len(self._sites):
            self.complete.set()

    async def _start(self, site: str, client: PrefectClient) -> None:
        """Ask the site's worker, through Prefect, to open a session.

        The first numbers may belong to a coordinator before this one: a session of it that is open
        is gone on with, and one that has ended is not opened again.
        """
        attempt = self.attempts.get(site, 0)
        parameters = SessionParameters(job=self._job, manifest=self._manifest)
        while attempt < MOST_SESSIONS:
            attempt += 1
            opened = await open_at(self._deployments[site], site, parameters, attempt, client)
            self.attempts[site], self.open[site] = attempt, opened.run
            if not opened.state.is_final:
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
                async with scrubbed_client() as client:
                    await self._start(site, client)

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
