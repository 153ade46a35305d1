"""One real Prefect server for the room, and what each test needs around it."""

from __future__ import annotations

import os
import time

import pytest
from orchestration_room import Daemon, EvilServer
from prefect.settings import temporary_settings

from fedflow.orchestration.local_server import LocalPrefectServer


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    with LocalPrefectServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture
def connected(prefect_server):
    with prefect_server.connected():
        yield prefect_server


@pytest.fixture
async def daemon(tmp_path, monkeypatch):
    daemon = Daemon(tmp_path / "site.sock")
    monkeypatch.setenv("FEDFLOW_SITE_SOCKET", str(daemon.path))
    await daemon.up()
    yield daemon
    await daemon.down()


@pytest.fixture
def evil(connected):
    server = EvilServer(connected.ui_url)
    yield server
    server.close()


@pytest.fixture
def label(request):
    """A site of its own for each test."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:40].strip("-")
    return f"s-{name}-{time.monotonic_ns() % 100000}"


@pytest.fixture(scope="session", autouse=True)
def no_profile_of_the_user(tmp_path_factory):
    """Nothing here may reach a server the person running the tests has configured."""
    home = str(tmp_path_factory.mktemp("client"))
    before = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = home
    with temporary_settings({"api.url": None, "api.key": None, "server.ephemeral.enabled": False}):
        yield
    os.environ.pop("PREFECT_HOME")
    if before is not None:
        os.environ["PREFECT_HOME"] = before
