"""The compose file: its schema, what it promises of networks and rights, and its servers' commands
run here against each other. Not run: an engine, its networks and its images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from deploy_federation import Process
from deploy_roles import environment
from servers import binary, postgres

from fedflow.orchestration.local_server import free_port

FOLDER = Path(__file__).parents[2] / "deploy/compose"
HERE = Path(sys.executable).parent
SITES = ("alpha", "beta", "gamma")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def test_it_has_the_form_of_a_compose_file(tmp_path):
    check = [HERE / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, FOLDER / "compose.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "compose.yaml"
    bad.write_text((FOLDER / "compose.yaml").read_text().replace("networks: [state]", "nets: []"))
    assert subprocess.run([*check, bad], capture_output=True).returncode != 0


def networks(service):
    return set(SERVICES[service]["networks"])


def test_a_site_reaches_the_relay_and_its_proxy_and_nothing_else():
    for site in SITES:
        assert COMPOSE["networks"][site] == {"internal": True}
        for part in ("agent", "worker"):
            assert networks(f"{site}-{part}") == {site}
        neighbours = {name for name in SERVICES if site in networks(name)}
        assert neighbours == {"relay", *(f"{site}-{p}" for p in ("agent", "worker", "proxy"))}
    for name in ("postgres", "redis"):
        assert {other for other in SERVICES if "state" in networks(other)} >= {name}
        assert networks(name) == {"state"}
    published = {name for name, service in SERVICES.items() if service.get("ports")}
    assert published == {"prefect"}
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["prefect"]["ports"])


def test_rights_are_few_and_images_are_pinned():
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["restart"] in ("unless-stopped", "on-failure"), name
        assert not service.get("privileged"), name
        assert not service.get("network_mode"), name
        assert re.search(r":\d+\.\d+(\.\d+)?(-[a-z]+)?$", service["image"]), name
        if "build" not in service:
            assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name
            assert service["healthcheck"], name
        assert "docker.sock" not in str(service.get("volumes"))


def test_secrets_are_files_and_each_is_given_to_those_who_need_it(tmp_path):
    subprocess.run([FOLDER / "secrets.sh", tmp_path / "s"], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "s").iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0
    assert len(set(made.values())) == len(made)
    subprocess.run([FOLDER / "secrets.sh", tmp_path / "s"], check=True)
    again = {path.name: path.read_text() for path in (tmp_path / "s").iterdir()}
    assert again == made  # what is there stays
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            assert not re.search(r"(PASSWORD|AUTH_STRING|PASSPHRASE|_URL_?)$", variable) or (
                variable == "PREFECT_API_URL"
            ), (name, variable)
    holders = {
        secret: {name for name in SERVICES if secret in SERVICES[name].get("secrets", [])}
        for secret in COMPOSE["secrets"]
    }
    assert holders["prefect-auth"] == {"prefect", "coordinator", *(f"{s}-proxy" for s in SITES)}
    for site in SITES:
        assert holders[f"{site}-passphrase"] == {f"{site}-agent"}
        assert holders[f"{site}-auth"] == {f"{site}-worker"}
        data = {n for n in SERVICES if f"{site}:/var/lib/fedflow" in SERVICES[n].get("volumes", [])}
        assert data == {f"{site}-agent"}
        assert f"{site}-socket:/run/fedflow-site" in SERVICES[f"{site}-worker"]["volumes"]


@pytest.mark.slow
def test_the_prefect_server_runs_on_the_stores_with_its_secrets_in_files(tmp_path):
    """The commands of redis and prefect, and prefect's health check, with PostgreSQL and free
    ports."""
    binary("redis-server", "redis-server"), binary("redis-cli", "redis-server")
    secrets = tmp_path / "secrets"
    subprocess.run([FOLDER / "secrets.sh", secrets], check=True)
    redis_port, port = free_port(), free_port()
    changes = {"$$": "$", "/run/secrets": str(secrets), "/tmp": str(tmp_path)}

    def unboxed(text):
        # in one go: what is put in may look like what is replaced
        return re.sub("|".join(map(re.escape, changes)), lambda found: changes[found[0]], text)

    redis = [unboxed(part) for part in SERVICES["redis"]["command"]]
    redis[-1] += f" --port {redis_port} --bind 127.0.0.1"
    check = unboxed(SERVICES["redis"]["healthcheck"]["test"][1])
    check = check.replace("redis-cli", f"redis-cli -p {redis_port}")
    with (
        postgres(tmp_path / "postgres") as database,
        Process(redis, tmp_path / "redis.log") as broker,
    ):
        while subprocess.run(["sh", "-c", check], capture_output=True).returncode:
            assert broker.alive(), broker.text()
        wrong = check.replace("redis-password", "postgres-password")
        assert subprocess.run(["sh", "-c", wrong], capture_output=True).returncode != 0
        (secrets / "prefect-database-url").write_text(database.asyncpg_url + "\n")
        url = secrets / "prefect-redis-url"
        url.write_text(url.read_text().replace("redis:6379", f"127.0.0.1:{redis_port}"))
        server = SERVICES["prefect"]
        changes |= {"0.0.0.0": "127.0.0.1", "4200": str(port)}
        command = [unboxed(part) for part in server["command"]]
        settings = {name: unboxed(value) for name, value in server["environment"].items()}
        search = f"{HERE}:{FOLDER.parent / 'docker'}:{os.environ['PATH']}"
        env = environment() | settings | {"PATH": search}
        with Process(command, tmp_path / "prefect.log", env=env, cwd=tmp_path) as prefect:
            health = [unboxed(part) for part in server["healthcheck"]["test"][1:]]
            deadline = time.monotonic() + 150
            while subprocess.run(health, env=env, capture_output=True).returncode:
                assert prefect.alive(), prefect.text()
                assert time.monotonic() < deadline, prefect.text()
            api = f"http://127.0.0.1:{port}/api/work_pools/filter"
            assert httpx.post(api, json={}).status_code == 401
            word = tuple((secrets / "prefect-auth").read_text().strip().split(":"))
            assert httpx.post(api, json={}, auth=word, timeout=60).status_code == 200
            shown = Path(f"/proc/{prefect.popen.pid}/cmdline").read_bytes()
            assert word[1].encode() not in shown
        assert int(database.query("select count(*) from pg_tables where tablename = 'flow_run'"))
