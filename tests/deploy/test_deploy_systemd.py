"""The units: systemd's own checks, and the commands in them run as they are written there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_roles import environment
from servers import binary

from fedflow.site.config import init_site

UNITS = Path(__file__).parents[2] / "deploy/systemd"
SERVICES = sorted(UNITS.glob("*.service"))
#: Of 100. What is left is a daemon's business: the network, threads, signals.
THRESHOLD = 15


def directives(path: Path, section: str = "Service") -> list[tuple[str, str]]:
    """(name, value) of a section's lines; names repeat."""
    text = path.read_text().partition(f"[{section}]")[2]
    lines = re.split(r"^\[", text, maxsplit=1, flags=re.M)[0].splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


def commands(path: Path) -> list[str]:
    return [value for name, value in directives(path) if name == "ExecStart"]


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_a_unit_exposes_little(unit):
    analyze = binary("systemd-analyze", "systemd")
    done = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={THRESHOLD}", unit],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_systemd_understands_every_unit(tmp_path):
    """In a copy whose commands exist: what is left to complain about is ours."""
    analyze = binary("systemd-analyze", "systemd")
    units = []
    for path in [*SERVICES, *UNITS.glob("*.timer")]:
        text = re.sub(r"/opt/fedflow/bin/\w+", "/bin/true", path.read_text())
        name = path.name.replace("@.", "@job.")
        (tmp_path / name).write_text(text)
        units.append(str(tmp_path / name))
    done = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "fedflow" in line]
    assert done.returncode == 0, done.stderr
    assert not ours, ours
    calendar = dict(directives(UNITS / "fedflow-site-audit.timer", "Timer"))["OnCalendar"]
    assert subprocess.run([analyze, "calendar", calendar], capture_output=True).returncode == 0


def test_a_unit_that_is_wrong_is_found(tmp_path):
    analyze = binary("systemd-analyze", "systemd")
    text = (UNITS / "fedflow-relay.service").read_text()
    bad = tmp_path / "fedflow-relay.service"
    bad.write_text(
        re.sub(r"/opt/\S+", "/bin/true", text).replace("NoNewPrivileges=yes", "NoPrivileges=yes")
    )
    done = subprocess.run([analyze, "verify", "--man=no", bad], capture_output=True, text=True)
    assert "NoPrivileges" in done.stderr
    loose = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={THRESHOLD}", "/dev/stdin"],
        input="[Service]\nExecStart=/bin/true\n",
        capture_output=True,
        text=True,
    )
    assert loose.returncode != 0


def test_users_and_folders_are_understood_and_are_those_of_the_units(tmp_path):
    sysusers = binary("systemd-sysusers", "systemd")
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        [sysusers, f"--root={tmp_path}", UNITS / "fedflow.sysusers"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    users = (tmp_path / "etc/passwd").read_text()
    members = {
        line.split(":")[0]: line.split(":")[3].split(",")
        for line in (tmp_path / "etc/group").read_text().splitlines()
    }
    assert sorted(members["fedflow-socket"]) == ["fedflow-site", "fedflow-worker"]
    for path in SERVICES:
        user = dict(directives(path))["User"]
        assert f"\n{user}:" in f"\n{users}"
        assert user != "root"
    if os.getuid() == 0:
        tmpfiles = binary("systemd-tmpfiles", "systemd")
        done = subprocess.run(
            [tmpfiles, "--create", f"--root={tmp_path}", UNITS / "fedflow.tmpfiles"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "run/fedflow-site").stat().st_mode & 0o777 == 0o710
        assert (tmp_path / "etc/credstore").stat().st_mode & 0o777 == 0o700


def test_the_worker_cannot_see_the_site():
    worker = directives(UNITS / "fedflow-worker.service")
    site = dict(directives(UNITS / "fedflow-site.service"))
    hidden = dict(worker)["InaccessiblePaths"]
    assert "/var/lib/fedflow-site" in hidden
    assert "/etc/credstore" in hidden
    assert dict(worker)["User"] != site["User"]
    assert not [value for name, value in worker if name == "LoadCredential"]
    assert not [value for name, value in worker if "KEY_PASSPHRASE" in value]


def run(command: str, changes: dict[str, str], **variables: str) -> subprocess.CompletedProcess:
    """A command of a unit, with this interpreter and folders of ours in the place of its own."""
    for old, new in changes.items():
        command = command.replace(old, new)
    words = shlex.split(command)
    here = {"/opt/fedflow/bin/fedflow": ["-m", "fedflow.cli.main"], "/opt/fedflow/bin/python": []}
    words = [sys.executable, *here[words[0]], *words[1:]]
    return subprocess.run(
        words, env=environment() | variables, capture_output=True, text=True, timeout=200
    )


@pytest.mark.slow
def test_the_nightly_check_runs_twice_in_a_row(tmp_path):
    """Its commands; that of the site's own unit is run as another user in test_deploy_users."""
    word = tmp_path / "word"
    word.write_text("a passphrase\n")
    os.environ["FEDFLOW_KEY_PASSPHRASE_FILE"] = str(word)
    try:
        init_site(tmp_path / "site", label="berlin", exchange=str(tmp_path / "exchange"))
    finally:
        os.environ.pop("FEDFLOW_KEY_PASSPHRASE_FILE")
    verify, export, doctor = commands(UNITS / "fedflow-site-audit.service")
    (tmp_path / "audit").mkdir()
    changes = {
        "/var/lib/fedflow-site-audit": str(tmp_path / "audit"),
        "/var/lib/fedflow-site/site": str(tmp_path / "site"),
    }
    for _ in range(2):
        for command in (verify, export):
            done = run(command, changes, FEDFLOW_KEY_PASSPHRASE_FILE=str(word))
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "audit/ledger").stat().st_size > 100
    found = run(doctor, changes, FEDFLOW_KEY_PASSPHRASE_FILE=str(word))
    assert found.returncode == 1  # no authority, no data: it says so
    assert "Traceback" not in found.stderr
    assert "policy" in found.stdout


def test_the_other_commands_are_ones_that_exist():
    """Up to their own reading of what they were given; sessions are run elsewhere."""
    (worker,) = commands(UNITS / "fedflow-worker.service")
    (coordinator,) = commands(UNITS / "fedflow-coordinator@.service")
    (relay,) = commands(UNITS / "fedflow-relay.service")
    done = run(worker, {"${FEDFLOW_SITE}": "berlin"})
    assert (done.returncode, done.stderr) == (
        1,
        "fedflow: refused: environment: PREFECT_API_URL: is not set\n",
    )
    unit = directives(UNITS / "fedflow-coordinator@.service")
    settings = " ".join(value for name, value in unit if name == "Environment").split()
    variables = dict(pair.split("=", 1) for pair in settings if "/var/lib" not in pair)
    assert variables["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "false"
    changes = {"%i": "job", "/var/lib/fedflow-coordinator": "/nowhere"}
    done = run(coordinator, changes, **variables)
    assert done.returncode not in (0, 2)  # 2: argparse did not understand
    assert "usage:" not in done.stderr
    done = run(relay, {"${FEDFLOW_AUTHORITY}": "no-key", "/var/lib": "/nowhere"})
    assert done.returncode == 2
    assert "No such" not in done.stderr
    assert "usage" not in done.stderr.lower()
