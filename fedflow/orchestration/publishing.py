"""Artifacts, best effort: a Prefect server that is slow or away never holds up or fails a round.

What is shown while a job runs goes out behind it, the newest only: a round hands over what to show
and goes on. What is shown at its end is waited for, for a few seconds.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable

from prefect.artifacts import Artifact

from fedflow.orchestration.scrub import scrubbed_client

Publication = Callable[[], Awaitable[None]]

#: How long one publication may take (seconds).
PATIENCE = 10.0
_log = logging.getLogger(__name__)


async def create(artifact: Artifact) -> None:
    """Create an artifact of the current run. Raises what the client raises."""
    async with scrubbed_client() as client:
        await artifact.acreate(client)


async def attempt(publish: Publication, seconds: float = PATIENCE) -> bool:
    """Whether ``publish`` succeeded in time. Never raises; the log says what kind of failure."""
    try:
        async with asyncio.timeout(seconds):
            await publish()
    except Exception as error:
        _log.debug("nothing was published: %s", type(error).__name__)
        return False
    return True


class Latest:
    """Publishes the newest thing it was offered, one at a time, behind whoever offers."""

    def __init__(self) -> None:
        self._wanted: Publication | None = None
        self._task: asyncio.Task[None] | None = None

    def offer(self, publish: Publication) -> None:
        """Publish this next, in place of whatever still waits."""
        self._wanted = publish
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def settle(self, seconds: float = PATIENCE) -> None:
        """Wait until nothing waits any more; after ``seconds`` give up what does."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)
            self._task.cancel()

    async def _run(self) -> None:
        while (publish := self._wanted) is not None:
            self._wanted = None
            await attempt(publish)


def svg_url(svg: str) -> str:
    """A picture as an address that holds it: nothing is fetched to show it."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
