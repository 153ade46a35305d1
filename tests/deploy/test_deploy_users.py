"""Daemon and worker as two users, as the units have them: the socket and nothing else is shared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from deploy_federation import LABELS, Federation, Process
from deploy_roles import environment

from fedflow.errors import InputError
from fedflow.site.config import init_site, open_site
from fedflow.site.socket_protocol import serve

SITE, WORKER, STRANGER, SHARED = 64001, 64002, 64003, 64100
START = ["-m", "fedflow.cli.main", "site", "start"]
ROOT = Path(__file__).parents[2]

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can start processes as others")


@pytest.fixture
def place():
    """A folder that other users may pass through, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="fedflow-users-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def python(place):
    """An interpreter that other users may run: this one's may be in somebody's home."""
    own = Path(sys.executable).resolve()
    open_to_all = all(folder.stat().st_mode & 0o001 for folder in own.parents)
    base = str(own) if open_to_all else shutil.which("python3.11", path="/usr/bin:/usr/local/bin")
    if base is None:
        pytest.skip("no Python 3.11 that another user could run")
    subprocess.run([base, "-m", "venv", "--without-pip", place / "venv"], check=True)
    (packages,) = (place / "venv/lib").glob("python3.11/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "here.pth").write_text("\n".join([str(ROOT), *here]) + "\n")
    (place / "venv").chmod(0o755)
    return str(place / "venv/bin/python")


def ask(python: str, user: int, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python as a user of the socket's group, except for the stranger."""
    return subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        user=user,
        group=user,
        extra_groups=[SHARED] if user != STRANGER else [],
        env=environment() | {"HOME": "/"},
        capture_output=True,
        text=True,
        timeout=100,
        cwd="/",
    )


ALIVE = "import sys; from fedflow.site import alive; alive.main()"
STEAL = """
import os, sys
root, got = sys.argv[1], []
for name in sys.argv[2:]:
    try:
        open(os.path.join(root, name), "rb").read(1)
        got.append(name)
    except OSError:
        pass
try:
    got += os.listdir(root)
except OSError:
    pass
sys.exit(f"read: {got}" if got else 0)
"""


@as_root
def test_the_worker_reaches_the_socket_and_none_of_the_files(place, python):
    site, run = place / "site", place / "run"
    run.mkdir(mode=0o710)
    run.chmod(0o710)
    os.chown(run, SITE, SHARED)
    init_site(site, label="berlin", exchange=str(site / "exchange"), socket=str(run / "a.sock"))
    settings = site / "site.toml"
    settings.write_text(
        settings.read_text().replace('socket_group = ""', f'socket_group = "{SHARED}"')
    )
    (site / "rows.csv").write_text("person\n")
    for path in [site, *site.rglob("*")]:
        os.chown(path, SITE, SITE)
    options = {"user": SITE, "group": SITE, "extra_groups": [SHARED], "cwd": "/", "umask": 0o077}
    options |= {"env": environment() | {"HOME": str(site)}}
    with Process([python, *START, str(site)], place / "log", **options) as agent:
        deadline = time.monotonic() + 100
        while (worker := ask(python, WORKER, ALIVE, run / "a.sock")).returncode and agent.alive():
            assert time.monotonic() < deadline, worker.stderr
        assert worker.stdout == "site berlin: idle\n", agent.text()
        socket = (run / "a.sock").stat()
        assert (socket.st_mode & 0o777, socket.st_uid, socket.st_gid) == (0o660, SITE, SHARED)
        assert ask(python, STRANGER, ALIVE, run / "a.sock").returncode == 1
        names = sorted(str(path.relative_to(site)) for path in site.rglob("*") if path.is_file())
        assert {"identity.pem", "ledger.sqlite", "rows.csv", "policy.toml"} <= set(names)
        for user in (WORKER, STRANGER):
            stolen = ask(python, user, STEAL, site, *names)
            assert stolen.returncode == 0, stolen.stderr
        # what the worker may not do to the socket's folder: put its own in the place of it
        code = "import os, sys; os.unlink(sys.argv[1])"
        assert "Permission" in ask(python, WORKER, code, run / "a.sock").stderr
        assert ask(python, SITE, STEAL, site, "identity.pem").returncode == 1  # this test can fail


async def test_a_group_that_is_not_the_agents_is_refused_and_leaves_no_socket(tmp_path):
    async def never(request, send):
        raise AssertionError

    for group in ("no-such-group", "9" * 4 if os.getuid() else "no-group-either"):
        with pytest.raises(InputError, match=r"socket_group"):
            await serve(tmp_path / "s", never, group=group)
        assert not (tmp_path / "s").exists()


def test_the_keys_passphrase_comes_from_a_file(tmp_path, monkeypatch):
    word = tmp_path / "word"
    word.write_text("correct horse\n")
    monkeypatch.setenv("FEDFLOW_KEY_PASSPHRASE_FILE", str(word))
    site = tmp_path / "site"
    made = init_site(site, label="berlin", exchange=str(tmp_path / "x"))
    assert b"ENCRYPTED" in (site / "identity.pem").read_bytes()
    assert open_site(site).identity.public == made.public
    word.write_text("wrong\n")
    with pytest.raises(Exception, match="passphrase"):
        open_site(site)
    word.write_text("\n")
    with pytest.raises(InputError, match="holds no passphrase"):
        open_site(site)
    word.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        open_site(site)


REFUSE_WRITABLE_CODE = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, since Linux 6.3
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.slow
async def test_agents_train_where_no_memory_is_writable_and_executable(place, python):
    """MemoryDenyWriteExecute= of the units, by the kernel's own switch. And no account's name: the
    containers' users are numbers. SIGTERM in a session that waits for its next order ends it."""
    probe = subprocess.run([sys.executable, "-c", REFUSE_WRITABLE_CODE, "-c", ""])
    strict = [] if probe.returncode else ["-c", REFUSE_WRITABLE_CODE]
    federation = Federation(place / "f", rounds=1)
    root = os.getuid() == 0
    with ExitStack() as stack:
        agents = {}
        for label in LABELS:
            site, options = federation.site(label), {}
            if root:
                for path in [site, *site.rglob("*")]:
                    os.chown(path, SITE, SITE)
                options = {"user": SITE, "group": SITE, "extra_groups": []}
            options["env"] = environment() | {"HOME": str(site), "USER": "fedflow"}
            command = [python, *strict, *START, str(site), "--no-prefect"]
            agents[label] = stack.enter_context(Process(command, place / f"{label}.log", **options))
        if root:
            exchange = federation.folder / "exchange"
            for path in [exchange, *exchange.rglob("*")]:
                path.chmod(0o777 if path.is_dir() else 0o666)
            federation.folder.chmod(0o755)
            (federation.folder / "sites").chmod(0o755)
            old = os.umask(0)
        try:
            runner = await federation.train(close=False)
        finally:
            if root:
                os.umask(old)
        for label, agent in agents.items():
            assert agent.alive(), agent.text()
            assert agent.stop() == 0, (label, agent.text())  # still in the session of its job
    assert runner.next_round == 2
    assert [federation.charges(label) for label in LABELS] == [
        2,
        2,
        2,
    ]
    if not strict:
        pytest.skip("trained, but this kernel has no PR_SET_MDWE: that part was not tried")
