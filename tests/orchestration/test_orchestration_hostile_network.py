"""Where a Prefect server could send a site's worker, and what it could pour into it.

Real redirects, real web sockets, real floods, through a proxy before a real server. What must hold:
no other host hears from the worker, its memory and its requests stay bounded, and it goes on
serving its site when the attack is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pickle
import uuid

import httpx
import pytest
from orchestration_room import bystander, start_run, until_final, worker_at
from prefect.events import emit_event
from prefect.settings import temporary_settings
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from fedflow.orchestration import scrub, wake
from fedflow.orchestration import worker as worker_module

pytestmark = pytest.mark.usefixtures("connected")

TOKEN = "9f3c-proxy-token"


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


# --- elsewhere ---------------------------------------------------------------------------------


async def test_the_attack_by_redirect_is_real(evil):
    """A plain client carries the headers that get a site past its proxy to any other host."""
    async with bystander() as (port, came):
        evil.respond = lambda *_: (307, {"location": f"http://127.0.0.1:{port}/meta"}, b"")
        with contextlib.suppress(httpx.HTTPError):
            async with httpx.AsyncClient(follow_redirects=True) as client:
                await client.get(evil.api_url + "/health", headers={"x-token": TOKEN})
    assert TOKEN.encode() in b"".join(came)


@pytest.mark.parametrize(
    ("status", "where"),
    [
        (301, "/work_pools/"),
        (302, "get_scheduled_flow_runs"),
        (303, "/deployments/"),
        (307, "set_state"),
        (308, "set_state"),
    ],
)
async def test_no_redirect_is_followed(label, daemon, evil, status, where):
    run_id = await start_run(label)
    sent = 0

    async with bystander() as (port, came):

        def elsewhere(method, path):
            nonlocal sent
            if where not in path:
                return None
            sent += 1
            return status, {"location": f"http://127.0.0.1:{port}{path}"}, b""

        evil.respond = elsewhere
        async with worker_at(label, evil.api_url) as worker:
            with contextlib.suppress(scrub.Unusable):
                await worker.get_and_submit_flow_runs()
            with contextlib.suppress(scrub.Unusable):
                await worker.sync_with_backend()
            await until(lambda: sent and not worker._submitting_flow_run_ids)
            evil.respond = lambda *_: None
            await worker.sync_with_backend()
            await worker.get_and_submit_flow_runs()
            assert (await until_final(run_id)).is_completed()
        assert came == []
    assert len(daemon.sessions) == 1


async def test_no_client_of_prefects_own_follows_one(evil):
    """Its command line asks for the pool before there is a worker."""
    from prefect.client.orchestration import get_client

    async with bystander() as (port, came):
        evil.respond = lambda *_: (307, {"location": f"http://127.0.0.1:{port}/x"}, b"")
        with temporary_settings({"api.url": evil.api_url}):
            client = get_client()
            with pytest.raises(httpx.HTTPStatusError, match="307"):
                await client.read_work_pool("any")
            sync = get_client(sync_client=True)
            with pytest.raises(httpx.HTTPStatusError, match="307"):
                await asyncio.to_thread(sync.request, "GET", "/health")
        assert came == []


async def test_a_web_socket_is_not_sent_elsewhere(label, daemon, evil):
    """The first thing a client says on one is its credential."""
    await start_run(label)
    async with bystander() as (port, came):

        def elsewhere(method, path):
            if "/events/" in path:
                return 302, {"location": f"ws://127.0.0.1:{port}{path}"}, b""
            return None

        evil.respond = elsewhere
        with temporary_settings({"api.auth_string": f"site:{TOKEN}"}):
            async with worker_at(label, evil.api_url) as worker:
                with contextlib.suppress(httpx.HTTPError):
                    await worker.get_and_submit_flow_runs()
                await until(lambda: any("/events/out" in path for _, path, _ in evil.seen))
                with pytest.raises(Exception, match="302"):
                    await connect(evil.api_url.replace("http", "ws") + "/events/in")
        assert came == []


# --- web sockets -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def event_stream(evil, talk):
    """A server of events that says ``talk(socket)`` to whoever subscribes."""

    async def handle(stream):
        if stream.request.path.endswith("/events/out"):
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                await stream.recv()
                await stream.send('{"type": "auth_success"}')
                assert json.loads(await stream.recv())["type"] == "filter"
                await talk(stream)
        await stream.close()

    async with serve(handle, "127.0.0.1", 0, subprotocols=["prefect"]) as server:
        evil.sockets = server.sockets[0].getsockname()[1]
        yield
        evil.sockets = None


def polls(evil):
    return sum("get_scheduled_flow_runs" in path for _, path, _ in evil.seen)


async def test_the_channel_of_orders_is_never_opened(label, daemon, evil):
    """Templates and orders to kill come over it; heartbeats are requests instead."""
    run_id = await start_run(label)
    async with worker_at(label, evil.api_url) as worker:
        await worker.sync_with_backend()
        await worker.get_and_submit_flow_runs()
        assert (await until_final(run_id)).is_completed()
        assert worker.handled_cleanup_kinds == ()
        with pytest.raises(NotImplementedError):
            await worker.kill_infrastructure("1", None)
    paths = [path for _, path, _ in evil.seen]
    assert not any("workers/connect" in path for path in paths)
    assert any(path.endswith("workers/heartbeat") for path in paths)


class Exploding:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


EVENT = {"event": {"id": str(uuid.uuid4()), "occurred": "2026-01-01T00:00:00Z", "event": "x"}}
MESSAGES = {
    "event": json.dumps(EVENT),
    "garbage": b"\x80\x04\xff" * 1000,
    "pickle": pickle.dumps(Exploding()),
    "nested": "[" * 200_000,
}


@pytest.mark.parametrize("kind", MESSAGES)
async def test_a_flood_of_messages_is_one_hint(label, daemon, evil, monkeypatch, kind):
    monkeypatch.setattr(wake, "AT_MOST_EVERY", 3600.0)
    sent = asyncio.Event()

    async def talk(stream):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):  # or until the worker takes no more
                for _ in range(2000):
                    await stream.send(MESSAGES[kind])
        sent.set()
        await stream.wait_closed()

    run_id = await start_run(label)
    async with event_stream(evil, talk), worker_at(label, evil.api_url) as worker:
        await asyncio.wait_for(sent.wait(), 30)
        await until(lambda: polls(evil) >= 1)
        assert (await until_final(run_id)).is_completed()  # the hint was enough
        assert polls(evil) == 1
        again = await start_run(label)
        await worker.get_and_submit_flow_runs()
        assert (await until_final(again)).is_completed()


async def test_what_is_not_read_is_not_kept(label, daemon, evil, monkeypatch):
    """Half a gigabyte for a worker that was told once: the sender has to keep it."""
    monkeypatch.setattr(wake, "AT_MOST_EVERY", 3600.0)
    part, taken, full = "x" * (1 << 19), 0, asyncio.Event()

    async def talk(stream):
        nonlocal taken
        with contextlib.suppress(TimeoutError):
            for _ in range(1000):
                async with asyncio.timeout(2):
                    await stream.send(part)
                taken += len(part)
        full.set()
        await stream.close()

    await start_run(label)
    async with event_stream(evil, talk), worker_at(label, evil.api_url):
        await asyncio.wait_for(full.wait(), 60)
    assert taken < 64 << 20


async def test_a_message_too_large_ends_the_stream_and_not_the_worker(label, daemon, evil):
    closed = []

    async def talk(stream):
        try:
            await stream.send("x" * (wake.MAX_MESSAGE + 1))
            await stream.wait_closed()
        finally:
            closed.append(stream.close_code)

    run_id = await start_run(label)
    async with event_stream(evil, talk), worker_at(label, evil.api_url) as worker:
        await until(lambda: closed)
        await worker.get_and_submit_flow_runs()
        assert (await until_final(run_id)).is_completed()
    assert closed[0] == 1009


async def test_hints_are_not_lost_between_two_polls(label, daemon, evil, monkeypatch):
    """What is said while the worker polls is polled for again."""
    monkeypatch.setattr(wake, "AT_MOST_EVERY", 0.05)
    go = asyncio.Queue()

    async def talk(stream):
        async with asyncio.timeout(30):
            while await go.get():
                await stream.send("hint")

    await start_run(label)
    async with event_stream(evil, talk), worker_at(label, evil.api_url):
        for number in range(1, 4):
            go.put_nowait(True)
            await until(lambda wanted=number: polls(evil) >= wanted)
        go.put_nowait(False)


# --- answers -----------------------------------------------------------------------------------


async def test_a_server_that_says_wait_for_ever(label, daemon, evil, monkeypatch):
    plain = worker_module.PROPOSE_SECONDS
    monkeypatch.setattr(worker_module, "PROPOSE_SECONDS", 0.3)
    details = {"type": "wait_details", "delay_seconds": 10**9, "reason": "later"}

    def wait(method, path, answer):
        if path.endswith("set_state"):
            return {"status": "WAIT", "details": details, "state": None}
        return answer

    evil.mutate = wait
    await start_run(label)
    async with worker_at(label, evil.api_url) as worker:
        await worker.get_and_submit_flow_runs()
        await until(lambda: not worker._submitting_flow_run_ids)
        assert worker.limiter.borrowed_tokens == 0
        monkeypatch.setattr(worker_module, "PROPOSE_SECONDS", plain)
        evil.mutate = lambda method, path, answer: answer
        again = await start_run(label)
        await worker.get_and_submit_flow_runs()
        assert (await until_final(again)).is_completed()


UNREADABLE = [b"null", b"{}", b"[null]", b'[{"flow_run": 1}]', b'"x"', b"[" * 5000, b""]


async def test_an_answer_nobody_can_read_is_one_failed_poll(label, daemon, evil):
    """Prefect's loop forgives a broken connection, and ends the process for anything else."""
    run_id = await start_run(label)
    failed = 0
    async with worker_at(label, evil.api_url) as worker:
        for body in UNREADABLE:
            evil.respond = lambda *_, body=body: (200, {}, body)
            for act in (worker.get_and_submit_flow_runs, worker.sync_with_backend):
                try:
                    await act()
                except httpx.TransportError:
                    failed += 1
        assert failed >= len(UNREADABLE)
        evil.respond = lambda *_: None
        await worker.sync_with_backend()
        await worker.get_and_submit_flow_runs()
        assert (await until_final(run_id)).is_completed()


@pytest.mark.parametrize("status", [200, 404])
async def test_deployments_that_cannot_be_read_keep_no_place(label, daemon, evil, status):
    """A malformed one ended Prefect's worker; one that is gone kept the place of its run."""
    async with worker_at(label, evil.api_url) as worker:
        for _ in range(worker_module.MAX_RUNS):
            await start_run(label)
        evil.respond = lambda _, path: (
            (status, {}, b'{"id": 1}') if "/deployments/" in path else None
        )
        await worker.get_and_submit_flow_runs()
        await until(lambda: not worker.limiter.borrowed_tokens)
        evil.respond = lambda *_: None
        run_id = await start_run(label)
        await worker.get_and_submit_flow_runs()
        await until(lambda: not worker._submitting_flow_run_ids)
        await until(lambda: not worker.limiter.borrowed_tokens)
        await worker.get_and_submit_flow_runs()
        assert (await until_final(run_id)).is_completed()


async def test_no_name_forges_a_line_of_the_sites_log(label, daemon, evil, caplog):
    caplog.set_level(logging.DEBUG, "fedflow.worker")
    forged = "x\n2026-01-01 ERROR forged\x1b[2J\x1b]0;owned\x07\u202e\x00"

    def rename(method, path, answer):
        if path.endswith("get_scheduled_flow_runs"):
            for entry in answer:
                entry["flow_run"]["name"] = forged
        if method == "GET" and path.startswith("/deployments/"):
            answer["name"] = forged
        if path.endswith("set_state"):
            details = {"type": "abort_details", "reason": forged}
            return {"status": "ABORT", "details": details, "state": None}
        return answer

    evil.mutate = rename
    await start_run(label)
    async with worker_at(label, evil.api_url) as worker:
        await worker.get_and_submit_flow_runs()
        await until(lambda: not worker._submitting_flow_run_ids)
    worker_module._log.error("%s", forged)
    try:
        raise ValueError(forged)
    except ValueError:
        worker_module._log.exception("an error")
    text = [record.getMessage() for record in caplog.records if record.name == "fedflow.worker"]
    assert any("forged" in line for line in text)
    for record in caplog.records:
        if record.name == "fedflow.worker":
            assert record.getMessage().isprintable()
            assert not set("\x1b\x07\x00\u202e") & set(record.exc_text or "")


def test_events_are_only_sent(connected):
    """What the worker emits goes one way; nothing of an answer is kept."""
    assert emit_event("fedflow.test", resource={"prefect.resource.id": "fedflow.test"}) is not None
