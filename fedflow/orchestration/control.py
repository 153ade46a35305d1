"""What people and machines ask of a coordinator that runs: go on, wait, cancel the job, stop.

* **Cancel** is a decision about the job. It comes from the flow run's state in Prefect and ends the
  job for good.
* **Pause** holds the job at the end of a round; sites stay joined.
* **Suspend** is a pause in which the process ends. Resuming starts another.
* **Stop** (SIGTERM, Ctrl-C) is about this process only: the job can be resumed.

A server that is away asks for nothing: the job goes on as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State

from fedflow.orchestration.scrub import scrubbed_client

T = TypeVar("T")

POLL_SECONDS = 1.5
#: How long one look at the server may take.
LOOK_SECONDS = 5.0


class Stopped(Exception):
    """This process was asked to end. The job is not over."""


class Cancelled(Exception):
    """The job was cancelled in Prefect."""


class Suspended(Exception):
    """The flow run was suspended: this process ends, and another resumes the job."""

    def __init__(self, state: State[Any]) -> None:
        super().__init__("the flow run was suspended")
        self.state = state


class Control:
    """Follows the state of one flow run, and this process's signals."""

    def __init__(self, flow_run_id: UUID) -> None:
        self._run = flow_run_id
        self._cancelled = False
        self._stopped = False
        self._state: State[Any] | None = None
        self._news = asyncio.Event()

    def stop(self) -> None:
        """Ask this process to end."""
        self._stopped = True
        self._news.set()

    @property
    def stopped(self) -> bool:
        """Whether this process was asked to end."""
        return self._stopped

    @property
    def _paused(self) -> bool:
        return self._state is not None and self._state.is_paused()

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """``work`` to its end; Cancelled or Stopped, with ``work`` cancelled, when asked for that.

        Of the two a cancellation counts: Prefect asks a process to end when its run is cancelled.
        """
        task = asyncio.create_task(work)
        try:
            while not task.done():
                if self._cancelled:
                    raise Cancelled
                if self._stopped:
                    await self._look_once()
                    raise Cancelled if self._cancelled else Stopped
                self._news.clear()
                news = asyncio.ensure_future(self._news.wait())
                await asyncio.wait({task, news}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def boundary(self) -> bool:
        """Between two rounds: wait while the run is paused; whether it was. Suspended to end."""
        waited = False
        while self._paused or self._cancelled:  # guard() ends a cancelled one
            state = self._state
            if self._paused and state is not None and state.state_details.pause_reschedule:
                raise Suspended(state)
            waited = True
            self._news.clear()
            await self._news.wait()
        return waited

    async def until_reachable(self, seconds: float) -> bool:
        """Whether the server answers, now or within ``seconds``."""
        until = asyncio.get_running_loop().time() + seconds
        while True:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(LOOK_SECONDS), scrubbed_client() as client:
                    if await client.api_healthcheck() is None:
                        return True
            if self._stopped or asyncio.get_running_loop().time() >= until:
                return False
            await asyncio.sleep(POLL_SECONDS)

    async def _look_once(self) -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(LOOK_SECONDS), scrubbed_client() as client:
                await self._look(client)

    async def _look(self, client: PrefectClient) -> None:
        state = (await client.read_flow_run(self._run)).state
        if state is None:
            return
        was, self._state = self._paused, state
        if state.is_cancelling() or state.is_cancelled():
            self._cancelled = True
        if self._cancelled or self._paused != was:
            self._news.set()

    async def watch(self) -> None:
        """Look at the run's state for as long as this is not cancelled."""
        while True:
            async with AsyncExitStack() as stack:
                with contextlib.suppress(Exception):  # the server is away: ask again
                    async with asyncio.timeout(LOOK_SECONDS):
                        client = await stack.enter_async_context(scrubbed_client())
                    while True:
                        async with asyncio.timeout(LOOK_SECONDS):
                            await self._look(client)
                        await asyncio.sleep(POLL_SECONDS)
            await asyncio.sleep(POLL_SECONDS)


@asynccontextmanager
async def controlled(flow_run_id: UUID) -> AsyncIterator[Control]:
    """A :class:`Control` that watches and listens to signals within the block."""
    control = Control(flow_run_id)
    watching = asyncio.create_task(control.watch())
    with _signals(control):
        try:
            yield control
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@contextlib.contextmanager
def _signals(control: Control) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the control to stop; the handlers before come back afterwards."""
    loop, before = asyncio.get_running_loop(), {}
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if handler is signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: no signals here
            loop.add_signal_handler(number, control.stop)
            before[number] = handler
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
