"""Images, without an engine: what is written in them is linted, and its commands are run here.

Not run: the base images themselves, COPY between stages, users and volumes of an engine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_federation import Process
from deploy_roles import environment

from fedflow.crypto.identity import Identity
from fedflow.orchestration.local_server import free_port
from fedflow.site.config import init_site

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1200)  # an installation on a busy machine
FILE = ROOT / "deploy/docker/Dockerfile"
WITH_SECRETS = ROOT / "deploy/docker/with-secrets"
HERE = Path(sys.executable).parent


def instructions() -> list[tuple[str, str, str]]:
    """(stage, instruction, rest) of every line of the Dockerfile."""
    text = re.sub(r"\\\n", " ", FILE.read_text())
    found, stage = [], ""
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            stage = rest.split()[-1]
        if word and not word.startswith("#"):
            found.append((stage, word, rest))
    return found


def of(stage: str, word: str) -> list[str]:
    return [rest for at, kind, rest in instructions() if (at, kind) == (stage, word)]


ROLES = ("site", "worker", "coordinator", "relay")


def test_hadolint_has_nothing_to_say():
    done = subprocess.run([HERE / "hadolint", FILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    bad = FILE.read_text().replace("3.11.13-slim-bookworm", "latest")
    done = subprocess.run([HERE / "hadolint", "-"], input=bad, capture_output=True, text=True)
    assert done.returncode != 0


def test_bases_are_pinned_users_are_numbers_and_nothing_secret_is_copied():
    stages = {rest.split()[-1] for _, word, rest in instructions() if word == "FROM"}
    for _, word, rest in instructions():
        if word == "FROM":
            base = rest.split()[0]
            assert base in stages or re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base), base
        assert word != "ADD"
        if word in ("ENV", "ARG"):
            assert not re.search(r"(PASSWORD|AUTH_STRING|API_KEY|PASSPHRASE)=", rest)
        if word == "COPY" and "--from" not in rest:
            for source in [part for part in rest.split()[:-1] if not part.startswith("--")]:
                assert source in "pyproject.toml README.md requirements.lock fedflow flows" or (
                    source == "deploy/docker/with-secrets"
                )
    for role in ROLES:
        (user,) = of(role, "USER")
        assert re.fullmatch(r"100\d\d:100\d\d", user)
        assert of(role, "HEALTHCHECK")
        assert of(role, "CMD")
    assert of("site", "USER") != of("worker", "USER")


def test_every_role_is_installed_alike_at_the_versions_of_the_lock_file():
    seen = set()
    for role in ROLES:
        (command,) = of(f"{role}-packages", "RUN")
        assert "--constraint /source/requirements.lock" in command
        assert role in re.search(r"\[([a-z0-9,]+)\]", command)[1].split(",")
        seen.add(re.sub(r"\[[a-z0-9,]+\]", "[]", command))
    assert len(seen) == 1  # so that running one of them is running all


def test_every_shell_command_is_one():
    for _, word, rest in instructions():
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
    subprocess.run(["sh", "-n", WITH_SECRETS], check=True)


@pytest.mark.slow
def test_the_commands_that_build_an_image_do(tmp_path):
    """The wheel's and the relay's, in a folder instead of at the root; the folders as root."""
    places = {"/wheels": tmp_path / "wheels", "/opt/fedflow": tmp_path / "opt"}
    places |= {"/source": tmp_path / "source", "/var/lib": tmp_path / "lib"}
    places |= {"/run/fedflow": tmp_path / "run"}
    (tmp_path / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / "source")
    for name in ("fedflow", "flows"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=ignore)

    def build(stage):
        (command,) = of(stage, "RUN")
        for old, new in places.items():
            command = command.replace(old, str(new))
        command = re.sub(r"\bpython -m venv", f"{shlex.quote(sys.executable)} -m venv", command)
        command = re.sub(r"^pip ", f"{HERE}/pip ", command)
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path / "source",
            env=environment(),
            capture_output=True,
            text=True,
            timeout=1000,
        )
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])

    build("wheel")
    build("relay-packages")
    fedflow = tmp_path / "opt/bin/fedflow"
    assert subprocess.run([fedflow, "--version"], cwd=tmp_path).returncode == 0
    if os.getuid() == 0:
        build("base")
        build("site")
        assert (tmp_path / "lib/fedflow").stat().st_uid == 10001
        assert (tmp_path / "run-site").stat().st_mode & 0o777 == 0o710


def exec_form(stage, word):
    (rest,) = of(stage, word)
    return json.loads(rest[rest.index("[") :])


def unboxed(command, changes):
    """A command of an image with our interpreter and folders in the place of its own."""
    words = []
    for part in command:
        for old, new in changes.items():
            part = part.replace(old, str(new))
        words.append(part)
    return words


def path_with(**programs):
    return environment() | {"PATH": f"{HERE}:{os.environ['PATH']}"} | programs


@pytest.mark.slow
def test_site_and_relay_start_and_their_health_checks_see_it(tmp_path):
    """CMD, then HEALTHCHECK: failing before, passing after."""
    run = Path(subprocess.check_output(["mktemp", "-d", "/tmp/ff.XXXXXX"], text=True).strip())
    try:
        init_site(
            tmp_path / "site",
            label="berlin",
            exchange=str(tmp_path / "exchange"),
            socket=str(run / "agent.sock"),
        )
        port = free_port()
        site = {"/var/lib/fedflow/site": tmp_path / "site", "/run/fedflow-site": run}
        relay = {"/var/lib/fedflow": tmp_path / "relay", "8790": port, "0.0.0.0": "127.0.0.1"}
        key = Identity.generate().public.hex()
        for role, changes, more in (
            ("site", site, {}),
            ("relay", relay, {"FEDFLOW_AUTHORITY": key}),
        ):
            check = unboxed(exec_form(role, "HEALTHCHECK"), changes)
            settings = {"env": path_with(**more), "cwd": tmp_path}
            assert subprocess.run(check, **settings, capture_output=True).returncode != 0
            command = unboxed(exec_form(role, "CMD"), changes)
            with Process(command, tmp_path / f"{role}.log", **settings) as process:
                while subprocess.run(check, **settings, capture_output=True).returncode:
                    assert process.alive(), process.text()
                assert process.stop() in (0, -15), process.text()
    finally:
        shutil.rmtree(run)


@pytest.mark.parametrize("role", ["worker", "coordinator"])
def test_the_other_commands_reach_the_program_they_name(role, tmp_path):
    bare = path_with(PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false", FEDFLOW_SITE="berlin")
    bare |= {"PATH": f"{HERE}:{WITH_SECRETS.parent}:{os.environ['PATH']}", "FEDFLOW_JOB": "j"}
    command = unboxed(exec_form(role, "CMD"), {"/var/lib/fedflow": "/nowhere"})
    done = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode not in (0, 2, 126, 127)
    assert "usage:" not in done.stderr
    if role == "worker":
        assert done.stderr == "fedflow: refused: environment: PREFECT_API_URL: is not set\n"


def test_secrets_come_out_of_files_and_a_missing_one_stops(tmp_path):
    word = tmp_path / "word"
    word.write_text('it\'s $HOME; a "word"\n')
    show = [sys.executable, "-c", "import os; print(os.environ.get('PREFECT_API_AUTH_STRING'))"]
    wanted = {
        "PREFECT_API_AUTH_STRING_FILE": str(word),
        "PREFECT_API_SSL_CERT_FILE": "/nowhere",
        "FEDFLOW_KEY_PASSPHRASE_FILE": "/nowhere",
    }
    done = subprocess.run(
        [WITH_SECRETS, *show], env=environment() | wanted, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ('it\'s $HOME; a "word"\n', "")
    for content in (None, ""):
        word.unlink() if content is None else word.write_text(content)
        done = subprocess.run(
            [WITH_SECRETS, *show], env=environment() | wanted, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "PREFECT_API_AUTH_STRING_FILE" in done.stderr


def test_the_build_context_holds_no_keys_and_no_data():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:].removesuffix("/**") for rule in rules if rule.startswith("!")}
    copied = {
        source
        for _, word, rest in instructions()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
        if not source.startswith("--")
    }
    assert let_in == copied
    assert {"**/*.pem", "**/*.sqlite"} <= set(rules)
