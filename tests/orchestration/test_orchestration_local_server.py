"""The embedded server: found, isolated, ended."""

from __future__ import annotations

import contextlib
import http.server
import os
import socketserver
import sys
import threading
import time
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from fedflow.errors import Misuse, Refusal
from fedflow.orchestration import local_server
from fedflow.orchestration.local_server import LocalPrefectServer


def alive(group: int) -> bool:
    """Whether a process of the group survives: a killed one may take a moment to go."""
    deadline = time.monotonic() + 3
    while running(group):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.02)
    return False


def running(group: int) -> bool:
    """Whether a process of the group still runs; a container may leave its dead unburied."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                state, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(of) == group and state not in "ZX":
                    return True
    return False


def test_it_runs_from_its_own_folder(prefect_server):
    assert (prefect_server.home / "prefect.db").exists()
    assert prefect_server.log.exists()
    assert prefect_server.pid is not None
    assert os.getpgid(prefect_server.pid) == prefect_server.pid
    environment = prefect_server.environment()
    assert environment["PREFECT_API_URL"] == prefect_server.api_url
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_connected_is_undone(prefect_server):
    before = os.environ.get("PREFECT_API_URL")
    with prefect_server.connected():
        assert PREFECT_API_URL.value() == prefect_server.api_url
        assert os.environ["PREFECT_API_URL"] == prefect_server.api_url
    assert PREFECT_API_URL.value() != prefect_server.api_url
    assert os.environ.get("PREFECT_API_URL") == before


def test_it_ignores_the_users_own_prefect(tmp_path, monkeypatch):
    """A started server sees none of the PREFECT_ variables of the person who started it."""
    monkeypatch.setenv("PREFECT_API_URL", "https://elsewhere.example/api")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://elsewhere/x")
    seen = tmp_path / "seen"
    fake = tmp_path / "fake"
    fake.write_text(f"#!/bin/sh\nenv > {seen}\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(Refusal):
        LocalPrefectServer(tmp_path / "home").start()
    text = seen.read_text()
    assert "elsewhere" not in text
    assert f"PREFECT_HOME={tmp_path / 'home'}" in text
    assert "sqlite+aiosqlite" in text


def test_a_server_that_dies_is_explained(tmp_path, monkeypatch):
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(Refusal, match=r"(?s)status 3.*disk is on fire") as caught:
        LocalPrefectServer(tmp_path / "home").start()
    assert caught.value.code == "prefect-server"
    assert "server.log" in str(caught.value)


def test_a_server_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch):
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\ntrap '' TERM\nsleep 60 &\nsleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    server = LocalPrefectServer(tmp_path / "home")
    groups, waited = [], []

    def progress(seconds):
        groups.append(server.pid)
        waited.append(seconds)

    stop = LocalPrefectServer.stop
    monkeypatch.setattr(LocalPrefectServer, "stop", lambda self: stop(self, timeout=0.2))
    with pytest.raises(Refusal, match="no answer after"):
        server.start(progress, timeout=0.5)
    assert waited == sorted(waited)
    assert len(waited) >= 2
    assert not alive(groups[0])
    server.stop()


def test_an_interrupt_while_starting_leaves_nothing_behind(tmp_path, monkeypatch):
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\nsleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    server = LocalPrefectServer(tmp_path / "home")
    groups = []

    def ctrl_c(_):
        groups.append(server.pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.start(ctrl_c)
    assert not alive(groups[0])


def test_a_port_in_use_is_named(tmp_path):
    handler = http.server.SimpleHTTPRequestHandler
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
        port = other.server_address[1]
        with pytest.raises(Refusal, match=f"port {port} is already in use"):
            LocalPrefectServer(tmp_path / "home", port).start()
        other.shutdown()


def test_a_free_port_that_is_taken_in_between_is_replaced(tmp_path, monkeypatch):
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho '[Errno 98] address already in use'\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    ports = iter([40001, 40002, 40003])
    tried = []
    monkeypatch.setattr(local_server, "free_port", lambda: tried.append(next(ports)) or tried[-1])
    with pytest.raises(Refusal):
        LocalPrefectServer(tmp_path / "home").start()
    assert tried == [40001, 40002, 40003]


def test_calls_in_the_wrong_order(tmp_path, prefect_server):
    server = LocalPrefectServer(tmp_path / "home")
    with pytest.raises(Misuse):
        server.port  # noqa: B018
    server.stop()
    with pytest.raises(Misuse):
        prefect_server.start()
