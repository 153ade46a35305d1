"""A site's proxy: a real nginx before a real Prefect server lets the site's worker through a whole
session, and answers everything else 403."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from deploy_federation import Process
from prefect.settings import temporary_settings
from servers import binary

from fedflow.orchestration.local_server import LocalPrefectServer, free_port
from fedflow.orchestration.registration import register_site
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.orchestration.worker_process import worker_command, worker_environment
from fedflow.site.socket_protocol import Accepted, End, Progress, SessionRequest, serve

PROXY = Path(__file__).parents[2] / "deploy/proxy"
MANIFEST = "cd" * 32
SITE = "berlin"


class Guarded(LocalPrefectServer):
    """A server that wants a credential, which no site has."""

    word = f"admin:{secrets.token_hex(8)}"

    def _storage(self):
        return super()._storage() | {"PREFECT_SERVER_API_AUTH_STRING": self.word}


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    """(server, the proxy's URL, the site's own credential, the proxy's process)"""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or binary(
        "nginx", "nginx-light"
    )
    folder = Path(tempfile.mkdtemp(prefix="fedflow-proxy-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = stack.enter_context(Guarded(tmp_path_factory.mktemp("prefect")))
        stack.enter_context(server.connected())
        stack.enter_context(temporary_settings({"api.auth_string": server.word}))
        port, word = free_port(), secrets.token_hex(8)
        (folder / "prefect").write_text(server.word + "\n")
        (folder / "htpasswd").write_text(f"{SITE}:{{PLAIN}}{word}\n")
        subprocess.run(
            [PROXY / "render.sh", SITE, f"127.0.0.1:{port}", server.ui_url[7:], folder / "run"],
            env=os.environ
            | {"PREFECT_AUTH_FILE": folder / "prefect", "SITE_AUTH_FILE": folder / "htpasswd"},
            check=True,
        )
        if os.getuid() == 0:  # its worker processes are another user
            folder.chmod(0o755)
            (folder / "run").chmod(0o755)
            (folder / "htpasswd").chmod(0o644)
        assert (folder / "run/prefect-auth.conf").stat().st_mode & 0o077 == 0
        config = folder / "run/nginx.conf"
        checked = subprocess.run([nginx, "-t", "-c", config], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        proxy = stack.enter_context(Process([nginx, "-c", str(config)], folder / "nginx.log"))
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert proxy.alive(), proxy.text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield server, f"http://127.0.0.1:{port}", (SITE, word), proxy


@pytest.mark.slow
async def test_a_worker_completes_a_session_through_its_proxy(front, tmp_path):
    server, proxy, (name, word), nginx = front
    """The first worker is killed in the middle; the next one, at the same home, goes on."""
    asked, begun = [], asyncio.Event()

    async def daemon(request, send):
        asked.append(request)
        await send(Accepted())
        await send(Progress(round=1, phase="training"))
        if len(asked) == 1:
            begun.set()
            await asyncio.sleep(60)
        await send(End(outcome="completed", reason="1 round"))

    path = Path(tempfile.mkdtemp(dir="/tmp")) / "s"
    settings = {"PREFECT_API_URL": f"{proxy}/api", "PREFECT_API_AUTH_STRING": f"{name}:{word}"}
    environment = worker_environment(settings, path, tmp_path / "home")
    environment["PREFECT_WORKER_QUERY_SECONDS"] = "1"  # no events come out: it polls
    assert server.word not in str(environment)
    deployment = await register_site(SITE)
    async with await serve(path, daemon), scrubbed_client() as client:
        run = await client.create_flow_run_from_deployment(
            deployment, parameters={"job": "trial", "manifest": MANIFEST}
        )
        with Process(worker_command(SITE), tmp_path / "first.log", env=environment) as killed:
            async with asyncio.timeout(120):
                await begun.wait()
            killed.popen.kill()
        with Process(worker_command(SITE), tmp_path / "worker.log", env=environment) as worker:
            deadline = time.monotonic() + 120
            while not (state := (await client.read_flow_run(run.id)).state).is_final():
                assert worker.alive(), worker.text()
                assert time.monotonic() < deadline, worker.text() + nginx.text()
            assert state.is_completed(), (state, worker.text())
            logs = [entry.message for entry in await client.read_logs()]
    assert [type(request) for request in asked] == [SessionRequest, SessionRequest]
    assert {request.manifest for request in asked} == {MANIFEST}
    assert "round 1: training" in logs
    refused = {line.split(" ", 3)[2] + " " + line.split()[3] for line in lines(nginx, 403)}
    # what Prefect's own code tries besides: every site's events, every site's runs
    assert refused <= {"GET /api/events/out", "POST /api/flow_runs/filter"}, refused
    path.parent.rmdir()


def lines(nginx, status):
    """Requests in the proxy's log that were answered with ``status``."""
    return [line for line in nginx.text().splitlines() if re.search(rf" {status} \d+$", line)]


RUN = "0123abcd-0123-4567-89ab-0123456789ab"
FORBIDDEN = [
    ("GET", "/"),
    ("GET", "/api/admin/settings"),
    ("GET", "/api/admin/storage"),
    ("POST", "/api/admin/database/clear"),
    ("GET", "/api/work_pools/paris"),
    ("POST", "/api/work_pools/paris/get_scheduled_flow_runs"),
    ("POST", "/api/work_pools/paris/workers/heartbeat"),
    ("GET", "/api/work_pools/paris/workers/connect"),
    ("POST", "/api/work_pools/filter"),
    ("POST", "/api/work_pools/"),
    ("PATCH", "/api/work_pools/berlin"),
    ("DELETE", "/api/work_pools/berlin"),
    ("POST", "/api/work_pools/berlin/workers/filter"),
    ("GET", "/api/work_pools/berlin2"),
    ("GET", "/api/work_pools/berlin/"),
    ("POST", "/api/flow_runs/filter"),
    ("POST", "/api/flow_runs/"),
    ("DELETE", f"/api/flow_runs/{RUN}"),
    ("GET", f"/api/flow_runs/{RUN}/graph"),
    ("POST", f"/api/flow_runs/{RUN}/resume"),
    ("PATCH", f"/api/deployments/{RUN}"),
    ("POST", f"/api/deployments/{RUN}/create_flow_run"),
    ("POST", "/api/deployments/filter"),
    ("GET", "/api/variables/name/secret"),
    ("POST", "/api/block_documents/filter"),
    ("POST", "/api/logs/filter"),
    ("POST", "/api/artifacts/filter"),
    ("POST", "/api/events/filter"),
    ("GET", "/api/events/out"),
    ("POST", "/api/automations/"),
    ("GET", "/docs"),
    # the same by other spellings
    ("GET", "/api/work_pools/paris/../berlin"),
    ("GET", "/api/work_pools/berlin/../paris"),
    ("GET", "/api/work_pools/paris%2f..%2fberlin"),
    ("GET", "/api/variables/name/%2e%2e/%2e%2e/version"),
    ("GET", "/api//work_pools/berlin"),
    ("GET", "/api/work_pools/%62erlin"),
    ("GET", "/API/work_pools/berlin"),
    ("GET", "/api/version;/../variables"),
]


def ask(proxy, method, path, credential=None, body=b""):
    """The status of one request whose path goes out exactly as it is written here."""
    host, port = proxy[7:].split(":")
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    if credential:
        head.append("Authorization: " + httpx.BasicAuth(*credential)._auth_header)
    head.append(f"Content-Length: {len(body)}")
    with socket.create_connection((host, int(port)), timeout=60) as link:
        link.sendall("\r\n".join(head).encode() + b"\r\n\r\n")
        link.sendall(body)
        return int(link.recv(64).split()[1])


@pytest.mark.slow
def test_everything_else_is_forbidden(front):
    _, proxy, site, _ = front
    wrong = {
        (method, path): status
        for method, path in FORBIDDEN
        if (status := ask(proxy, method, path, site, b"{}" if method == "POST" else b"")) != 403
    }
    assert not wrong
    # and what is not forbidden is really asked of the server, with the federation's credential
    assert ask(proxy, "GET", "/api/version", site) == 200
    assert ask(proxy, "GET", f"/api/flow_runs/{RUN}", site) == 404
    assert ask(proxy, "GET", "/healthz") == 200


@pytest.mark.slow
def test_only_the_site_itself_is_let_in_and_only_with_little(front):
    server, proxy, site, _ = front
    path = "/api/version"
    assert ask(proxy, "GET", path) == 401
    assert ask(proxy, "GET", path, (site[0], "guess")) == 401
    assert ask(proxy, "GET", path, tuple(server.word.split(":"))) == 401
    assert ask(server.ui_url, "GET", path, site) == 401  # its credential is nothing to the server
    assert ask(proxy, "POST", "/api/logs/", site, b"x" * 300_000) == 413


def test_a_label_that_would_write_into_the_configuration_is_refused(tmp_path):
    for label in ("", "a/b", "a b", "a;", "A", "$(id)", "a\nb"):
        done = subprocess.run(
            [PROXY / "render.sh", label, "127.0.0.1:1", "127.0.0.1:2", tmp_path / "x"],
            capture_output=True,
        )
        assert done.returncode == 2, label
        assert not (tmp_path / "x").exists()


def test_the_relays_tls_front_is_one_that_nginx_takes(tmp_path):
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or binary(
        "nginx", "nginx-light"
    )
    key, chain = tmp_path / "relay.key", tmp_path / "relay.pem"
    make = [binary("openssl", "openssl"), "req", "-x509", "-newkey", "ed25519", "-nodes"]
    make += ["-days", "1", "-keyout", key, "-out", chain, "-subj", "/CN=relay.example.org"]
    subprocess.run(make, check=True, capture_output=True)
    text = (PROXY / "relay.conf").read_text().replace("/etc/ssl/fedflow", str(tmp_path))
    config = tmp_path / "nginx.conf"
    text = text.replace("listen 443", f"listen 127.0.0.1:{free_port()}")
    config.write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{text}\n}}\n")
    done = subprocess.run([nginx, "-t", "-c", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
