"""The worker against a real Prefect server and a site daemon that is told what to say."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

import pytest
from orchestration_room import MANIFEST, read_state, serve_run, start_run, until_final, worker_at
from prefect.states import Pending, Running

from fedflow.errors import Refusal
from fedflow.orchestration import worker as worker_module
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.orchestration.worker_process import worker_command, worker_environment
from fedflow.site.socket_protocol import Accepted, CancelRequest, End, Progress, SessionRequest

pytestmark = pytest.mark.usefixtures("connected")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.2)


async def test_a_completed_session(label, daemon):
    run_id = await start_run(label)
    state = await serve_run(label, run_id)
    assert state.is_completed()
    assert state.message == "3 rounds"
    assert daemon.requests == [SessionRequest(job="trial", manifest=MANIFEST)]


@pytest.mark.parametrize(
    ("end", "kind", "name", "message"),
    [
        (
            End(outcome="refused", code="budget-exhausted", reason="0.2 of 3.0 left"),
            "FAILED",
            "Refused",
            "budget-exhausted: 0.2 of 3.0 left",
        ),
        (
            End(outcome="error", code="disk-full", reason="/data/patients.csv"),
            "FAILED",
            "SiteError",
            "site error: disk-full",
        ),
        (End(outcome="cancelled"), "CANCELLED", "Cancelled", "cancelled by the site"),
    ],
)
async def test_how_a_session_ends_in_prefect(label, daemon, end, kind, name, message):
    async def answer(request, send):
        await send(Accepted())
        await send(end)

    daemon.answer = answer
    state = await serve_run(label, await start_run(label))
    assert (state.type.value, state.name, state.message) == (kind, name, message)


async def test_the_logs_in_prefect_are_fixed_texts(label, daemon, connected):
    async def answer(request, send):
        await send(Accepted())
        for number in range(3):
            await send(Progress(round=number, phase="masked"))
        await send(End(outcome="completed"))

    daemon.answer = answer
    run_id = await start_run(label)
    await serve_run(label, run_id)
    async with scrubbed_client() as client:
        response = await client.request(
            "POST", "/logs/filter", json={"logs": {"flow_run_id": {"any_": [str(run_id)]}}}
        )
    texts = [log["message"] for log in response.json()]
    expected = ["session opened with the site daemon"]
    assert texts == expected + [f"round {number}: masked" for number in range(3)]


async def test_a_daemon_that_restarts_is_found_again(label, daemon, quick):
    async def wait(request, send):
        await send(Accepted())
        await asyncio.sleep(60)

    daemon.answer = wait
    run_id = await start_run(label)
    async with worker_at(label) as worker:
        await worker.get_and_submit_flow_runs()
        while not daemon.sessions:
            await asyncio.sleep(0.05)
        await daemon.down()
        await asyncio.sleep(0.3)
        daemon.answer = daemon.complete
        await daemon.up()
        state = await until_final(run_id)
    assert state.is_completed()
    assert len(daemon.sessions) == 2


async def test_a_daemon_that_stays_away(label, daemon, monkeypatch):
    monkeypatch.setattr(worker_module, "RECONNECT_SECONDS", 0.3)
    await daemon.down()
    state = await serve_run(label, await start_run(label))
    assert (state.name, state.message) == ("SiteError", "site error: site-unreachable")


async def test_no_socket_configured(label, monkeypatch):
    monkeypatch.delenv("FEDFLOW_SITE_SOCKET", raising=False)
    state = await serve_run(label, await start_run(label))
    assert (state.name, state.message) == ("Refused", "no-site-socket")


async def test_a_bug_in_the_worker_shows_its_type_only(label, daemon, monkeypatch):
    async def broken(*args, **kwargs):
        raise ValueError("patient 42 has NaN")

    monkeypatch.setattr(worker_module, "follow", broken)
    state = await serve_run(label, await start_run(label))
    assert (state.name, state.message) == ("SiteError", "site error: ValueError")


async def test_cancellation_reaches_the_daemon(label, daemon, quick):
    stop = asyncio.Event()

    async def answer(request, send):
        await send(Accepted())
        if isinstance(request, CancelRequest):
            stop.set()
        else:
            await stop.wait()
            await send(End(outcome="cancelled"))

    daemon.answer = answer
    run_id = await start_run(label)
    async with worker_at(label) as worker:
        await worker.get_and_submit_flow_runs()
        await _running(run_id)
        await _cancel(run_id)
        state = await until_final(run_id)
    assert state.is_cancelled()
    assert CancelRequest(job="trial") in daemon.requests


async def test_cancellation_without_an_answer_still_ends(label, daemon, quick, monkeypatch):
    monkeypatch.setattr(worker_module, "CANCEL_SECONDS", 0.5)

    async def deaf(request, send):
        await send(Accepted())
        if not isinstance(request, CancelRequest):
            await asyncio.sleep(60)

    daemon.answer = deaf
    run_id = await start_run(label)
    async with worker_at(label) as worker:
        await worker.get_and_submit_flow_runs()
        await _running(run_id)
        await _cancel(run_id)
        state = await until_final(run_id)
    assert state.is_cancelled()
    assert "unconfirmed" in state.message


async def test_a_run_closed_by_the_coordinator_is_let_go(label, daemon, quick):
    from fedflow.orchestration.sessions import close_session

    async def wait(request, send):
        await send(Accepted())
        await asyncio.sleep(60)

    daemon.answer = wait
    run_id = await start_run(label)
    async with worker_at(label) as worker:
        await worker.get_and_submit_flow_runs()
        await _running(run_id)
        await close_session(run_id, "Dropped", "no heartbeat in round 3")
        while worker.limiter.borrowed_tokens:
            await asyncio.sleep(0.05)
    state = await read_state(run_id)
    assert (state.type.value, state.name) == ("CRASHED", "Dropped")
    assert CancelRequest(job="trial") not in daemon.requests  # another session may be using it


async def test_a_pool_of_another_type_is_refused(label):
    from prefect.client.schemas.actions import WorkPoolCreate

    async with scrubbed_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=label, type="process"))
    with pytest.raises(Refusal, match="not of type"):
        async with worker_at(label):
            pass


async def test_a_worker_started_before_the_site_is_registered(label, daemon):
    async with worker_at(label) as worker:
        run_id = await start_run(label)
        await worker.get_and_submit_flow_runs()
        assert (await until_final(run_id)).is_completed()


@pytest.mark.parametrize("left", [Pending(), Running()])
async def test_a_run_that_a_killed_worker_left_is_taken_up(label, daemon, left):
    run_id = await start_run(label)
    await _force(run_id, left)
    async with worker_at(label) as worker:
        state = await until_final(run_id)
        assert worker.limiter.borrowed_tokens == 0
        assert not worker._followed
    assert (state.type.value, state.message) == ("COMPLETED", "3 rounds")
    assert daemon.requests == [SessionRequest(job="trial", manifest=MANIFEST)]


async def test_a_cancellation_that_a_killed_worker_left_is_carried_out(label, daemon):
    run_id = await start_run(label)
    await _force(run_id, Running())
    await _cancel(run_id)
    async with worker_at(label):
        state = await until_final(run_id)
    assert state.is_cancelled()
    assert daemon.requests == [CancelRequest(job="trial")]


async def test_nothing_is_taken_up_before_the_pool_was_seen(
    label, daemon, evil, monkeypatch, caplog
):
    """The server answered some questions and not others when the worker started."""
    monkeypatch.setattr(worker_module, "ADOPT_SECONDS", 0.05)
    run_id = await start_run(label)
    await _force(run_id, Running())
    pool = f"/api/work_pools/{label}"
    evil.respond = lambda method, path: (500, {}, b"{}") if path.startswith(pool) else None
    async with worker_at(label, evil.api_url) as worker:
        await asyncio.sleep(0.5)
        assert daemon.requests == []
        evil.respond = lambda method, path: None
        await worker._sync_and_initialize()
        state = await until_final(run_id)
    assert state.is_completed()
    assert not [record for record in caplog.records if record.exc_info]


async def test_what_is_taken_up_is_authorised_like_anything_else(label, daemon):
    run_id = await start_run(label)
    other = await start_run(f"{label[:40]}-other")
    async with scrubbed_client() as client:
        await client.request(
            "PATCH", f"/flow_runs/{run_id}", json={"parameters": {"job": "x", "command": "id"}}
        )
    await _force(run_id, Running())
    await _force(other, Running())
    async with worker_at(label):
        state = await until_final(run_id)
    assert state.name == "Refused"
    assert daemon.requests == []
    assert (await read_state(other)).is_running()  # another site's


async def test_a_run_this_worker_follows_is_not_taken_up_again(label, daemon, monkeypatch):
    monkeypatch.setattr(worker_module, "ADOPT_SECONDS", 0.05)
    looked = 0
    real = worker_module.left_open

    async def left_open(client, pool, begun, most):
        nonlocal looked
        found = await real(client, pool, begun, most)
        looked += bool(found)
        return found

    monkeypatch.setattr(worker_module, "left_open", left_open)

    async def answer(request, send):
        await send(Accepted())
        while looked < 3:
            await asyncio.sleep(0.02)
        await send(End(outcome="completed"))

    daemon.answer = answer
    assert (await serve_run(label, await start_run(label))).is_completed()
    assert len(daemon.sessions) == 1


@pytest.mark.slow
async def test_the_real_command(label, daemon, connected, tmp_path, monkeypatch):
    """``prefect worker start --type fedflow``: found by entry point, woken by an event, stopped."""
    monkeypatch.setenv("SITE_SECRET", "9f3c-site-db-password")
    entered = asyncio.Event()

    async def answer(request, send):
        await send(Accepted())
        if request.job == "long":
            entered.set()
            await asyncio.sleep(60)
        await send(End(outcome="completed"))

    daemon.answer = answer
    await start_run(label)  # registers the site; this run is there before the worker
    environment = worker_environment(connected.environment(), daemon.path, tmp_path / "home")
    assert "SITE_SECRET" not in environment
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            worker_command(label), env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        run_id = await start_run(label)
        assert (await until_final(run_id, 40)).is_completed()
        long = await start_run(label, {"job": "long", "manifest": MANIFEST})
        await asyncio.wait_for(entered.wait(), 20)
        os.kill(process.pid, signal.SIGTERM)
        while process.poll() is None:
            await asyncio.sleep(0.1)
        state = await read_state(long)
        assert (state.type.value, state.name) == ("CRASHED", "Dropped")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()


async def _force(run_id, state):
    async with scrubbed_client() as client:
        await client.set_flow_run_state(run_id, state, force=True)


async def _running(run_id):
    async with asyncio.timeout(15):
        while not (await read_state(run_id)).is_running():
            await asyncio.sleep(0.05)


async def _cancel(run_id):
    from fedflow.orchestration.sessions import cancel_session

    await cancel_session(run_id)
