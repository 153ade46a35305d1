"""PostgreSQL, Redis and a Prefect server on them: killed, and back where they were."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import servers
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.events.schemas.events import Resource
from processes import is_alive

from fedflow.errors import Misuse
from fedflow.orchestration.local_server import LocalPrefectServer
from fedflow.orchestration.registration import register_site


def test_a_commit_survives_kill(tmp_path):
    with servers.postgres(tmp_path, durable=True) as server:
        url = server.create_database("relay")
        assert url.endswith("/relay")
        server.query("create table kept (n int)", "relay")
        for number in range(3):
            server.query(f"insert into kept values ({number})", "relay")
            server.kill()
            with pytest.raises(RuntimeError):
                server.query("select 1")
            server.restart()
        assert server.query("select count(*) from kept", "relay") == "3"
        assert server.query("show fsync") == "on"
        if server.user():
            owner = Path(f"/proc/{server.pid}").stat().st_uid
            assert owner != 0
    assert server.pid is None
    assert not server.data.exists()


def test_a_wrong_password_is_refused(tmp_path):
    with servers.postgres(tmp_path) as server:
        server.password, right = "wrong", server.password
        with pytest.raises(RuntimeError, match="password authentication failed"):
            server.query("select 1")
        server.password = right
        assert server.query("select 1") == "1"


def test_a_redis_that_was_killed_knows_what_it_answered(tmp_path):
    with servers.redis(tmp_path, durable=True) as server:
        import redis

        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "yes")
        server.kill()
        assert not server.ready()
        server.restart()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"yes"
        with (
            redis.Redis.from_url(server.url.replace(server.password, "x")) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.get("kept")


@pytest.mark.parametrize("make", ["Postgres", "RedisServer"])
def test_it_ends_with_the_process_that_started_it(tmp_path, make):
    servers.binary("initdb" if make == "Postgres" else "redis-server", "of the name")
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux ties a process to its parent")
    program = f"""
import os, pathlib, sys
sys.path.insert(0, {str(Path(servers.__file__).parent)!r})
import servers
server = servers.{make}(pathlib.Path({str(tmp_path)!r}))
server.start()
print(server.pid, getattr(server, "home", ""), flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100
    )
    pid, _, home = done.stdout.strip().partition(" ")
    assert done.returncode == -9, done.stderr
    deadline = time.monotonic() + 20
    while is_alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(int(pid))
    if home:
        servers.shutil.rmtree(home, ignore_errors=True)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(servers.shutil, "which", lambda *_, **__: None)
    monkeypatch.delenv("FEDFLOW_CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="redis-server is not installed"):
        servers.binary("redis-server", "redis-server")
    monkeypatch.setenv("FEDFLOW_CI", "1")
    with pytest.raises(pytest.fail.Exception, match="redis-server is not installed"):
        servers.binary("redis-server", "redis-server")


def test_redis_alone_is_no_place_for_a_server(tmp_path):
    with pytest.raises(Misuse, match="PostgreSQL"):
        LocalPrefectServer(tmp_path, redis="redis://127.0.0.1")


@pytest.mark.slow
async def test_prefect_comes_back_over_its_database(tmp_path):
    """Each of the three is killed; the server answers again and has forgotten nothing."""
    with servers.prefect_on_postgres(tmp_path, durable=True) as server, server.connected():
        first = await register_site("north")
        assert await event_arrives(server)
        assert "ERROR" not in server.log.read_text()
        for victim in (server.postgres, server.redis, server):
            victim.kill()
            victim.restart()
            assert await answered(lambda: register_site("north")) == first
        assert await event_arrives(server)
        environment = Path(f"/proc/{server.pid}/environ").read_bytes().decode().split("\0")
        assert "PREFECT_SERVER_ANALYTICS_ENABLED=false" in environment
        assert "PREFECT_MESSAGING_BROKER=prefect_redis.messaging" in environment
        assert not [
            line for line in environment if line.endswith("SERVICES_TRIGGERS_ENABLED=false")
        ]
        assert os.environ["PREFECT_API_URL"] == server.api_url


async def answered(ask, seconds=60.0):
    """The first answer: a server whose database was killed first meets its dead connections."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except Exception:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def event_arrives(server, seconds=60.0):
    """Whether an event goes through Redis into the database."""
    deadline = time.monotonic() + seconds
    number = 0
    async with get_client() as client:
        while time.monotonic() < deadline:
            number += 1
            emit_event("fedflow.test", resource=Resource({"prefect.resource.id": f"test.{number}"}))
            await asyncio.sleep(0.5)
            found = await client._client.post(
                "/events/filter", json={"filter": {"event": {"name": ["fedflow.test"]}}}
            )
            if found.json()["total"]:
                return True
    return False
