"""What Prefect's client sends from a thread of its own: events, and with them all task runs.

A process that ends while a slow server is still behind loses what it had not read yet: Prefect
closes the connection ten seconds later, whatever is left in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from uuid import UUID

from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.events.worker import EventsWorker

from fedflow.orchestration.scrub import scrubbed_client

#: How long the server may show nothing new before nothing more is waited for.
IDLE_SECONDS = 20.0
#: How long one question may take.
LOOK_SECONDS = 5.0


async def until_recorded(flow_run_id: UUID, tasks: int, seconds: float) -> bool:
    """Whether the server shows so many finished tasks of a flow run, at once or within ``seconds``.

    It is given up earlier when the server shows no more of them for ``IDLE_SECONDS``.
    """
    loop = asyncio.get_running_loop()
    began = grown = loop.time()
    most = 0
    while True:
        shown = 0
        with contextlib.suppress(Exception):  # the server is away, or answers something else
            async with asyncio.timeout(LOOK_SECONDS):
                shown = await _finished_tasks(flow_run_id)
        now = loop.time()
        if shown >= tasks:
            return True
        if shown > most:
            most, grown = shown, now
        if now > began + seconds or now > grown + IDLE_SECONDS:
            return False
        await asyncio.sleep(0.2)


async def _finished_tasks(flow_run_id: UUID) -> int:
    wanted = {
        "flow_runs": {"id": {"any_": [str(flow_run_id)]}},
        "task_runs": {"state": {"type": {"any_": sorted(s.value for s in TERMINAL_STATES)}}},
    }
    async with scrubbed_client() as client:
        return int((await client.request("POST", "/task_runs/count", json=wanted)).json())


def drain_events(seconds: float = 10.0) -> None:
    """Send the events of this process, for so long at most; the next ones go by a new thread.

    The thread keeps the server and the flow run of the first event it was given, for all others.
    """
    sending = threading.Thread(target=EventsWorker.drain_all, args=(seconds,), daemon=True)
    sending.start()  # of its own: it would have to be awaited where a loop runs
    sending.join(seconds + 1)
