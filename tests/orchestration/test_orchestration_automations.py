"""Automations on a real Prefect server with all its services: they install once, and they fire."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.events.schemas.automations import Posture
from prefect.states import Crashed, Running
from servers import prefect_on_postgres, tied

from fedflow.errors import InputError
from fedflow.orchestration import automations
from fedflow.orchestration.automations import RESUME_TAG, Wishes
from fedflow.orchestration.budget_event import emit_budget_low
from fedflow.orchestration.events import announce_site
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.site.socket_messages import BudgetLow

pytestmark = pytest.mark.slow
WAIT = 120.0  # generous: it ends as soon as it is there

COORDINATOR = textwrap.dedent(
    """
    import asyncio
    from pathlib import Path
    from prefect import flow, runtime

    @flow(name="like-a-coordinator", persist_result=False)
    async def coordinate(folder: str):
        Path(folder, f"run-{runtime.flow_run.run_count}").touch()
        if runtime.flow_run.run_count == 1:
            await asyncio.Event().wait()
    """
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with prefect_on_postgres(tmp_path_factory.mktemp("automations"), redis=False) as running:
        yield running


@pytest.fixture
async def on_server(server):
    with server.connected():
        yield server
        await automations.remove()


async def until(what, why, seconds=WAIT):
    deadline = time.monotonic() + seconds
    while not (found := await what()):
        assert time.monotonic() < deadline, why
        await asyncio.sleep(0.1)
    return found


async def heartbeats(run):
    wanted = {
        "filter": {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run}"]},
        }
    }
    async with scrubbed_client() as client:
        return (await client._client.post("/events/filter", json=wanted)).json()["events"]


async def state_of(run):
    async with scrubbed_client() as client:
        return (await client.read_flow_run(run)).state


# ---- installing


async def test_installing_twice_changes_nothing_and_repairs_edits(on_server):
    first = await automations.install(Wishes())
    assert set(first.values()) == {"installed"}
    assert set((await automations.install(Wishes())).values()) == {"unchanged"}
    changed = await automations.install(Wishes(silence=300))
    assert sorted(changed.values()) == ["unchanged", "updated"]
    async with scrubbed_client() as client:  # a copy somebody made, and a switch somebody turned
        for found in await client.read_automations():
            await client.pause_automation(found.id)
        for copy in automations.recovery(300):
            await client.create_automation(copy)
    assert set((await automations.install(Wishes(silence=300))).values()) == {"updated"}
    listed = await automations.installed()
    assert len(listed) == len(first)
    assert all(enabled for _, _, enabled in listed)
    assert set(await automations.remove()) == set(first)
    assert await automations.installed() == []


async def test_what_does_not_exist_is_named(on_server):
    with pytest.raises(InputError, match="slack-webhook/nobody"):
        await automations.install(Wishes(notify="slack-webhook/nobody"))
    with pytest.raises(InputError, match="nothing/here"):
        await automations.install(Wishes(pause=("nothing/here",)))
    assert await automations.installed() == [], "nothing is installed by halves"


def test_only_tagged_runs_are_touched():
    for automation in automations.recovery():
        related = automation.trigger.match_related
        assert related["prefect.resource.id"] == [f"prefect.tag.{RESUME_TAG}"]
    assert automations.recovery(90)[0].trigger.posture is Posture.Proactive


# ---- firing


async def test_a_killed_coordinator_is_crashed_rescheduled_and_goes_on(on_server, tmp_path):
    source = tmp_path / "like_a_coordinator.py"
    source.write_text(COORDINATOR)
    async with scrubbed_client() as client:
        flow = await client.create_flow_from_name("like-a-coordinator")
        runs = []
        for tags in ([RESUME_TAG], []):  # the second is somebody else's: it stays as it is
            deployment = await client.create_deployment(flow, name=f"d{len(tags)}", tags=tags)
            runs.append(
                await client.create_flow_run_from_deployment(
                    deployment, parameters={"folder": str(tmp_path / f"d{len(tags)}")}
                )
            )
    (tmp_path / "d1").mkdir()
    (tmp_path / "d0").mkdir()
    # installed before anything beats; the shortest silence the server accepts
    await automations.install(Wishes(silence=10))
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(engine(on_server, source, run.id)) for run in runs]
        for run in runs:
            await until(lambda run=run: heartbeats(run.id), "it never sent a heartbeat")
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()

    async def rescheduled():
        return (await state_of(runs[0].id)).name == "AwaitingRetry"

    await until(rescheduled, "nobody noticed that the coordinator was gone")
    assert (await state_of(runs[1].id)).name == "Running", "another flow's run is not ours"
    with engine(on_server, source, runs[0].id) as process:  # as the work pool's worker starts it
        assert await asyncio.to_thread(process.wait, WAIT) == 0
    assert (await state_of(runs[0].id)).is_completed()
    assert (tmp_path / "d1" / "run-2").exists()


async def test_a_coordinator_that_was_stopped_is_rescheduled(on_server):
    await automations.install(Wishes())
    async with scrubbed_client() as client:
        flow = await client.create_flow_from_name("like-a-coordinator")
        deployment = await client.create_deployment(flow, name="stopped", tags=[RESUME_TAG])
        run = await client.create_flow_run_from_deployment(deployment)
        await client.set_flow_run_state(run.id, Running(), force=True)
        await client.set_flow_run_state(run.id, Crashed(name="Stopped"), force=True)

    async def rescheduled():
        return (await state_of(run.id)).name == "AwaitingRetry"

    await until(rescheduled, "a machine that restarts would leave its jobs waiting")


@contextlib.contextmanager
def engine(server, source, run):
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        **server.environment(),
        "PREFECT__FLOW_RUN_ID": str(run),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    command = [sys.executable, "-m", "prefect.flow_engine", f"{source}:coordinate"]
    process = subprocess.Popen(
        tied(command), env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_low_budget_pauses_and_tells_and_a_refusal_tells(on_server):
    told = []

    class Inbox(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    inbox = ThreadingHTTPServer(("127.0.0.1", 0), Inbox)
    threading.Thread(target=inbox.serve_forever, args=(0.05,), daemon=True).start()
    try:
        block = CustomWebhookNotificationBlock(
            name="office",
            url=f"http://127.0.0.1:{inbox.server_port}/",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        )
        await block.asave("office")
        async with scrubbed_client() as client:
            flow = await client.create_flow_from_name("next-job")
            deployment = await client.create_deployment(flow, name="nightly")
        await automations.install(
            Wishes(notify="custom-webhook/office", pause=("next-job/nightly",))
        )
        job = SimpleNamespace(id="trial")
        for threshold in ("50-percent", "next-round"):  # the first is nothing to stop for
            alarm = BudgetLow(id=os.urandom(16).hex(), account="visits/train", threshold=threshold)
            emit_budget_low("berlin", alarm)
        for _ in range(3):  # every round; told once
            await announce_site(job, "oslo", "refused", 3, "budget-exhausted: spent")

        async def paused():
            async with scrubbed_client() as client:
                return (await client.read_deployment(deployment)).paused

        async def both():
            return len(told) >= 2

        await until(paused, "the schedule was not paused")
        await until(both, "nobody was told")
    finally:
        inbox.shutdown()
        inbox.server_close()
    text = "\n".join(told)
    assert len(told) == 2, told
    assert "visits/train crossed next-round" in text
    assert "oslo refuses in job trial" in text
    assert "50-percent" not in text
