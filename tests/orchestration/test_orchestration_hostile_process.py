"""The worker's process as a service manager starts it: what it holds, asks and starts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from orchestration_room import bystander, start_run, until_final

from fedflow.orchestration import worker_process

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.slow]

SECRETS = {
    "SITE_SECRET": "9f3c-site-db-password",
    "AWS_SECRET_ACCESS_KEY": "9f3c-aws",
    "PGPASSWORD": "9f3c-pg",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "fedflow",
    "PREFECT_LOGGING_TO_API_ENABLED": "true",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
    "PYTHONSTARTUP": "/tmp/9f3c.py",
    "HTTPS_PROXY": "http://127.0.0.1:1",
}


def shape(method, path):
    parts = path.split("?")[0].strip("/").split("/")
    return method, "/".join("ID" if _is_id(part) else part for part in parts)


def _is_id(part):
    try:
        return bool(uuid.UUID(part))
    except ValueError:
        return False


async def test_the_started_process_holds_and_asks_nothing_more(label, daemon, evil, tmp_path):
    """Its environment, command, children, and each request from the very first on."""
    run_id = await start_run(label)
    redirected = []
    async with bystander() as (port, came):

        def once(method, path):
            if path.endswith("/filter") and not redirected:
                redirected.append(path)  # of Prefect's command line, before there is a worker
                return 307, {"location": f"http://127.0.0.1:{port}/x"}, b""
            return None

        evil.respond = once
        settings = {
            "PREFECT_API_URL": evil.api_url,
            "PREFECT_HOME": str(tmp_path / "home"),
            "FEDFLOW_SITE_SOCKET": str(daemon.path),
        }
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedflow.orchestration.worker_process", label],
                env={**os.environ, **SECRETS, **settings},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            state = await until_final(run_id, 90)
            assert state.is_completed(), (tmp_path / "log").read_text()[-2000:]
            proc = Path(f"/proc/{process.pid}")
            held = dict(
                line.split("=", 1)
                for line in (proc / "environ").read_bytes().decode().split("\0")
                if line
            )
            command = (proc / "cmdline").read_bytes().decode().split("\0")
            children = (proc / "task" / str(process.pid) / "children").read_text().split()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, 30)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        assert came == []
    wanted = worker_process.worker_environment(settings, daemon.path, tmp_path / "home")
    assert set(held) <= set(wanted)
    assert not any("9f3c" in value for value in held.values())
    assert {name: held[name] for name in ("PREFECT_LOGGING_TO_API_ENABLED", "DO_NOT_TRACK")} == {
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    assert command[command.index("--type") :][:2] == ["--type", "fedflow"]
    assert command[command.index("--install-policy") :][:2] == ["--install-policy", "never"]
    assert children == []
    assert not evil.received("9f3c")
    asked = {shape(method, path.replace(label, "POOL")) for method, path, _ in evil.seen}
    assert asked <= {
        ("GET", "api/csrf-token"),
        ("GET", "api/work_pools/POOL"),
        ("POST", "api/work_pools/POOL/queues/filter"),
        ("GET", "api/deployments/ID"),
        ("GET", "api/flow_runs/ID"),
        ("GET", "api/events/out"),
        ("GET", "api/events/in"),
        ("POST", "api/flow_runs/filter"),
        ("POST", "api/work_pools/POOL/get_scheduled_flow_runs"),
        ("POST", "api/work_pools/POOL/workers/heartbeat"),
        ("POST", "api/flow_runs/ID/set_state"),
        ("POST", "api/logs"),
        ("PATCH", "api/flow_runs/ID"),
    }
