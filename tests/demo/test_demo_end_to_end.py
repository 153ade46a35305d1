"""``fedflow demo`` as a person runs it: a real server, thirteen processes, one power cut."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import is_alive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

FIGURES = {
    "auc_global", "auc_alone_mean", "auc_pooled", "auc_federated_no_privacy", "epsilon_spent",
    "epsilon_budget", "rounds", "audit_ok", "report", "folder",
}  # fmt: skip
ROUND = {"number", "sites", "dropped", "seconds", "training_seconds", "auc"}


def small_plan(request, path, rounds, name="randhie-summed.toml"):
    text = (request.config.rootpath / "flows" / "plans" / name).read_text()
    for field, value in [
        ("rounds", rounds),
        ("local_steps", 2 if name == "randhie.toml" else 1),
        ("every", 2),
        ("round_seconds", 8),
        ("leg_seconds", 8),
    ]:
        text, found = re.subn(rf"(?m)^{field} = [0-9.]+", f"{field} = {value}", text)
        assert found == 1, field
    path.write_text(text)
    return path


def start(plan, folder, *options):
    command = [sys.executable, "-m", "fedflow.cli.main", "demo", "--json"]
    command += ["--plan", str(plan), "--folder", str(folder), *options]
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}  # must not be used
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def processes_of(folder):
    """Living processes that name the folder on their command line or in their environment."""
    out, wanted = {}, os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            near = command + (entry / "environ").read_bytes()
            cwd = os.fsencode(os.readlink(entry / "cwd"))
        except OSError:
            continue
        if state != "Z" and (wanted in near or cwd.startswith(wanted)):
            out[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return out


def descendants(pid):
    """All processes below ``pid``, whatever group they are in."""
    out = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, thread.read_text().split()):
            out |= {child} | descendants(child)
    return out


def none_left(folder, pids, seconds=10):
    until = time.monotonic() + seconds
    while left := {**processes_of(folder), **{p: "started earlier" for p in pids if is_alive(p)}}:
        assert time.monotonic() < until, left
        time.sleep(0.1)


def events(folder):
    for path in folder.glob("coordinator/jobs/*/events.jsonl"):
        return [json.loads(x) for x in path.read_text().splitlines() if x.endswith("}")]
    return []


def wait_for(condition, process, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "the demo did not get there in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def interrupted(request, tmp_path_factory):
    """A demo ended by Ctrl-C within its second round: status, words, folder and processes."""
    home = tmp_path_factory.mktemp("interrupted")
    plan, folder = (
        small_plan(request, home / "plan.toml", rounds=9, name="randhie.toml"),
        home / "out",
    )
    process = start(plan, folder, "--drop-site", "none")
    try:
        wait_for(lambda: any(e["event"] == "round-done" for e in events(folder)), process)
        seen = descendants(process.pid)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, err = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    return process.returncode, err, folder, seen


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory, interrupted):
    """One whole demo with an outage: its facts, folder, and every process it was seen to start.

    It follows an interrupted one, which must not be in its way.
    """
    home = tmp_path_factory.mktemp("demo")
    plan, folder = small_plan(request, home / "plan.toml", rounds=4), home / "out"
    process, seen = start(plan, folder, "--drop-site", "site-3"), set()
    try:
        wait_for(lambda: len(events(folder)) > 10, process)
        seen = descendants(process.pid)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, out + err
    return json.loads(out), folder, seen, err


def test_the_facts_have_every_figure_and_the_job_is_whole(finished):
    facts, folder, _, _ = finished
    assert set(facts) >= FIGURES
    assert [r["number"] for r in facts["rounds"]] == [1, 2, 3, 4]
    assert all(set(r) >= ROUND for r in facts["rounds"])
    assert facts["audit_ok"] is True
    assert facts["folder"] == str(folder)
    assert len(facts["epsilon_spent"]) == 6
    for spent in facts["epsilon_spent"].values():
        assert 0 < spent <= facts["epsilon_budget"]
    for name in ("auc_global", "auc_alone_mean", "auc_pooled", "auc_federated_no_privacy"):
        assert 0.4 < facts[name] < 1
    assert [r["auc"] is not None for r in facts["rounds"]] == [False, True, False, True]


def test_the_site_that_lost_power_is_missed_in_that_round_only_at_first(finished):
    facts, _, _, _ = finished
    struck = facts["rounds"][1]
    assert struck["dropped"] == ["site-3"]
    assert struck["recovered"] == ["site-3"]
    assert len(struck["sites"]) == 5
    assert len(facts["rounds"][0]["sites"]) == 6
    assert all(r["dropped"] == [] and r["refused"] == {} for r in facts["rounds"][2:])
    # Its last reservation was charged and never used: it paid as much as the others at least once.
    assert facts["epsilon_spent"]["site-3"] > 0


def test_nothing_it_started_is_left(finished):
    _, folder, seen, _ = finished
    assert len(seen) >= 14  # a server, a coordinator, six agents, six workers
    none_left(folder, seen)


def test_the_report_needs_nothing_from_anywhere(finished):
    facts, _, _, _ = finished
    html = Path(facts["report"]).read_text()
    html = re.sub(r"(?s)<script.*?</script>", "", html)  # plotly's own text has links in it
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html)
    assert "site-3" in html


def test_each_site_has_its_own_rows_and_keeps_its_files_to_itself(finished):
    _, folder, _, _ = finished
    people = {}
    for site in sorted((folder / "sites").iterdir()):
        lines = (site / "visits.csv").read_text().splitlines()
        at = lines[0].split(",").index("zper")
        people[site.name] = {line.split(",")[at] for line in lines[1:]}
        assert (site / "visits.csv").stat().st_mode & 0o077 == 0
        assert (site / "identity.pem").stat().st_mode & 0o077 == 0
        assert site.stat().st_mode & 0o077 == 0
    names = sorted(people)
    assert len(names) == 6
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not people[one] & people[other]


def test_prefect_was_told_names_and_states_and_nothing_else(finished):
    facts, folder, _, _ = finished
    database = folder / "prefect" / "prefect.db"
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        rows = db.execute(
            "SELECT f.name, r.parameters FROM flow_run r JOIN flow f ON f.id = r.flow_id"
        ).fetchall()
        states = db.execute("SELECT name, message FROM flow_run_state").fetchall()
        tasks = {n for (n,) in db.execute("SELECT name FROM task_run")}
        results = db.execute(
            "SELECT count(*) FROM flow_run_state WHERE length(coalesce(data, '')) > 200"
        ).fetchone()[0]
    db.close()
    sessions = [json.loads(p) for n, p in rows if "session" in n]
    trainings = [json.loads(p) for n, p in rows if n == "federated_training"]
    assert len(sessions) >= 6
    for parameters in sessions:
        assert set(parameters) == {"job", "manifest"}
        assert parameters["job"] == facts["job"]
        assert re.fullmatch("[0-9a-f]{64}", parameters["manifest"])
    assert trainings == [{"job": facts["job"], "sessions": True}]
    assert results == 0
    for word in ("dispatch", "train site-", "secure aggregate", "update global", "evaluate"):
        assert any(word in name for name in tasks), word
    assert {"Completed", "Dropped"} <= {name for name, _ in states}
    for _, message in states:
        assert "Traceback" not in (message or "")


def test_nothing_private_is_in_prefects_files(finished):
    """Neither keys, nor masked or raw vectors, nor models, nor rows."""
    _, folder, _, _ = finished
    files = [p for p in (folder / "prefect").rglob("*") if p.is_file()]
    files += (folder / "logs").iterdir()
    everything = b"\n".join(p.read_bytes() for p in files)
    assert len(everything) > 10_000
    secrets = []
    for site in (folder / "sites").iterdir():
        pem = (site / "identity.pem").read_text().splitlines()
        secrets.append(pem[1].encode())
        secrets.append((site / "visits.csv").read_bytes().splitlines()[7])
    uploads = [*(folder / "exchange").rglob("up/*/*"), *(folder / "exchange").rglob("vector/*/*")]
    assert any("vector" in path.parts for path in uploads)
    for path in filter(Path.is_file, uploads):
        data = path.read_bytes()
        secrets += [data[-64:-32], data[60:92]]  # signature, and the middle of a vector
    for path in (folder / "exchange").rglob("blobs/*"):
        data = path.read_bytes()
        secrets.append(data[-32:])
    secrets = [s for s in secrets if len(set(s)) > 8]
    assert len(secrets) > 100
    for secret in secrets:
        assert secret not in everything
        assert secret.hex().encode() not in everything


def test_the_logs_of_a_good_run_hold_no_traceback(finished):
    _, folder, _, err = finished
    for path in (folder / "logs").iterdir():
        assert "Traceback (most recent call last)" not in path.read_text(errors="replace"), path
    assert "Traceback" not in err


def test_what_it_left_behind_verifies_again_and_a_changed_byte_is_found(finished):
    _, folder, _, _ = finished
    command = [sys.executable, "-m", "fedflow.cli.main", "audit", "verify", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    masked = next((folder / "exchange").rglob("up/masked/0"))
    data = bytearray(masked.read_bytes())
    data[-100] ^= 1
    masked.write_bytes(bytes(data))
    try:
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1
    finally:
        data[-100] ^= 1
        masked.write_bytes(bytes(data))


def test_ctrl_c_in_the_middle_ends_everything_it_started(interrupted):
    """Also when pressed again, impatiently. That a second run works, the other tests show."""
    code, err, folder, seen = interrupted
    assert code == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert len(seen) >= 14
    none_left(folder, seen)
    assert not list(folder.rglob("*.sock"))


def test_a_site_that_cannot_run_ends_the_demo_at_once_and_says_why(request, tmp_path):
    """Its agent refuses to start, here for its settings file; nobody waits for it in vain."""
    plan, folder = small_plan(request, tmp_path / "plan.toml", rounds=2), tmp_path / "out"
    process = start(plan, folder, "--drop-site", "none")
    try:
        wait_for(lambda: (folder / "sites" / "site-6" / "ledger.sqlite").exists(), process)
        wait_for(lambda: (folder / "logs" / "site-2.log").exists(), process)
        (folder / "sites" / "site-2" / "site.toml").write_text("label = 7")
        out, err = process.communicate(timeout=80)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 2, out + err
    assert "site-2" in err
    assert "ended too early" in " ".join(err.split())
    assert "Traceback" not in err
    none_left(folder, set())
