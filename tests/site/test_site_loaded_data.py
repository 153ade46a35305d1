"""Loaded data in children of the training process: kept while valid, never longer; and kills."""

import asyncio
import io
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from processes import is_alive

from fedflow.errors import FedflowError
from fedflow.learning.model_file import encode_model
from fedflow.learning.plan import load_plan
from fedflow.learning.server_state import initial_state
from fedflow.learning.trivial import site_table, workload
from fedflow.learning.workload import initial_model
from fedflow.site import loaded_data
from fedflow.site.loaded_data import Died, Holders
from fedflow.site.trainer import read_frame, write_frame
from fedflow.site.training_client import TrainingClient

PLAN = load_plan(Path(__file__).parents[2] / "flows/plans/trivial.toml")
MODEL = encode_model(initial_state(initial_model(workload), PLAN))


def children(pid):
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


async def eventually(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        await asyncio.sleep(0.01)


def settled(path):
    """Wait until the file is old enough to be kept once loaded."""
    while loaded_data.file_state(str(path)) is None:
        time.sleep(0.01)
    return path


# ---- holders, with made-up work


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"first")
    return settled(path)


@pytest.fixture
def holders():
    made = []

    def make(**changes):
        settings = {"load": read, "answer": tell} | changes
        made.append(Holders(settings.pop("load"), settings.pop("answer"), **settings))
        return made[-1]

    yield make
    for each in made:
        each.forget()


def read(name, path):
    return Path(path).read_bytes(), os.getpid()


def tell(out, source, loaded):
    """What was asked, what was loaded, and by which process."""
    header, payload = read_frame(source)
    data, pid = loaded()
    write_frame(out, {"pid": pid, "data": data.decode(), **header}, payload * 2)


def ask(holders, path, name="name", payload=b""):
    out = io.BytesIO()
    holders.request(name, str(path), lambda pipe: write_frame(pipe, {"q": 1}, payload), out)
    return read_frame(io.BytesIO(out.getvalue()))


def test_what_is_loaded_once_answers_many_requests_of_any_size(holders, data_file):
    asked = holders()
    pids = set()
    for size in (0, 1, 3 * (1 << 20) + 5):
        payload = os.urandom(size)
        header, answer = ask(asked, data_file, payload=payload)
        assert (header["data"], header["q"], answer) == ("first", 1, payload * 2)
        pids.add(header["pid"])
    assert len(pids) == 1
    assert ask(asked, data_file, name="other")[0]["pid"] not in pids
    assert not any(map(is_alive, pids))  # at most one data set is held


@pytest.mark.parametrize("how", ["replaced", "rewritten", "same size and time", "gone"])
def test_a_changed_file_is_loaded_anew(holders, data_file, how):
    asked = holders()
    first = ask(asked, data_file)[0]["pid"]
    before = data_file.stat()
    if how == "replaced":
        (data_file.parent / "new").write_bytes(b"other")
        os.replace(data_file.parent / "new", data_file)
    elif how == "gone":
        data_file.unlink()
    else:
        data_file.write_bytes(b"other")
        if how != "rewritten":
            os.utime(data_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if how == "gone":
        with pytest.raises(Died):  # nobody told ``tell`` what to do about an error
            ask(asked, data_file)
    else:
        header, _ = ask(asked, data_file)
        assert header["data"] == "other"
        assert header["pid"] != first
    assert not is_alive(first)


def test_a_file_that_may_still_be_changing_is_not_kept(holders, data_file, monkeypatch):
    monkeypatch.setattr(loaded_data, "_SETTLED", 10**18)
    asked = holders()
    assert ask(asked, data_file)[0]["pid"] != ask(asked, data_file)[0]["pid"]


def test_a_file_that_changes_while_it_is_loaded_is_not_kept(holders, data_file):
    def load(name, path):
        data = read(name, path)
        Path(path).write_bytes(b"later")
        return data

    asked = holders(load=load)
    assert ask(asked, data_file)[0]["data"] == "first"
    settled(data_file)
    assert ask(asked, data_file)[0]["data"] == "later"


def test_threads_that_loading_leaves_are_never_forked(holders, data_file):
    def load(name, path):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return read(name, path)

    def work(out, source, loaded):
        _, pid = loaded()
        read_frame(source)
        write_frame(out, {"here": os.getpid() == pid, "threads": threading.active_count()})

    asked = holders(load=load, answer=work)
    for _ in range(2):
        assert ask(asked, data_file)[0] == {"here": True, "threads": 2}


def test_nobody_asks_so_the_data_go(holders, data_file):
    asked = holders(idle_seconds=0.05)
    first = ask(asked, data_file)[0]["pid"]
    until = time.monotonic() + 30
    while is_alive(first):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert ask(asked, data_file)[0]["pid"] != first


def test_a_request_that_dies_before_it_answers_is_told_from_one_that_dies_within(
    holders, data_file
):
    def work(out, source, loaded):
        _, payload = read_frame(source)
        out.write(payload)
        out.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    whole, started = io.BytesIO(), io.BytesIO()
    write_frame(whole, {"a": 1}, b"answer")
    write_frame(started, {"a": 1})
    asked = holders(answer=work)
    for payload, passed in ((b"", False), (started.getvalue()[:-1], False), (b"half", False)):
        with pytest.raises(Died) as caught:
            ask(asked, data_file, payload=payload)
        assert caught.value.passed == passed, payload
    with pytest.raises(Died) as caught:
        ask(asked, data_file, payload=whole.getvalue()[:-1])
    assert caught.value.passed
    # Killed after its last byte: nothing is missing.
    assert ask(asked, data_file, payload=whole.getvalue()) == ({"a": 1}, b"answer")
    asked._answer = tell  # of the next holder
    asked.forget()
    assert ask(asked, data_file)[0]["data"] == "first"


# ---- the real process


@pytest.fixture
async def trainer(tmp_path):
    client = TrainingClient(tmp_path / "trainer.log")
    await client.start()
    yield client
    await client.close()


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(site_table("a"))
    return settled(path)


async def train(client, rows, **changes):
    request = {
        "task": "train",
        "workload": "trivial",
        "data": rows,
        "plan": PLAN.canonical(),
        "model": MODEL,
        "sites": 3,
        "value_range": 8.0,
    } | changes
    return (await client.run(request.pop("task"), **request)).vector


@pytest.mark.slow
async def test_requests_of_one_holder_share_nothing_but_the_data(trainer, rows):
    vectors = [await train(trainer, rows) for _ in range(3)]
    (holder,) = children(trainer._process.pid)
    assert await train(trainer, rows, task="evaluate") is not None
    assert [holder] == children(trainer._process.pid)
    assert len({vector.tobytes() for vector in vectors}) == 3  # noise is drawn anew
    assert len(list(Path(f"/proc/{holder}/task").iterdir())) == 1
    trainer.forget()
    await eventually(lambda: not is_alive(holder))
    assert (await train(trainer, rows)).shape == vectors[0].shape
    # Replaced between rounds, by what cannot be used and by what can.
    rows.write_bytes(b"person,a,b,c,label\np,1,1,1,2\n")
    with pytest.raises(FedflowError) as caught:
        await train(trainer, rows)
    assert caught.value.code == "bad-input"
    rows.write_bytes(site_table("b"))
    assert (await train(trainer, rows)).shape == vectors[0].shape


@pytest.mark.slow
async def test_every_process_may_be_killed_at_any_moment_of_a_request(trainer, rows):
    """One kill a request: it still gives one vector, and the next request finds all in order."""

    def warm():
        return [trainer._process.pid]

    def holder():
        return [child for pid in warm() for child in children(pid)]

    def request():
        return [child for pid in holder() for child in children(pid)]

    size = (await train(trainer, rows)).size
    killed = {request: 0, holder: 0, warm: 0}
    for targets, times in ((request, 6), (holder, 5), (warm, 1)):
        for _ in range(times):
            running = asyncio.create_task(train(trainer, rows))
            await asyncio.sleep(secrets.randbelow(20) / 1000)
            while not running.done() and not targets():
                await asyncio.sleep(0.001)
            for pid in targets()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed[targets] += 1
            assert (await asyncio.wait_for(running, 120)).size == size
        assert (await train(trainer, rows)).size == size
    assert all(killed.values())


async def test_a_request_that_dies_again_is_not_tried_a_third_time(tmp_path, monkeypatch):
    """As when it needs more memory than there is. A process that reports it, and one that ends."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import sys\n"
        "from fedflow.site.trainer import read_frame, write_frame\n"
        "write_frame(sys.stdout.buffer, {'ok': True, 'ready': True})\n"
        "while frame := read_frame(sys.stdin.buffer):\n"
        "    with open(sys.argv[1], 'a') as file: file.write('x')\n"
        "    if frame[0]['task'] == 'half':\n"
        "        sys.stdout.buffer.write(b'\\0\\0'); sys.stdout.buffer.flush(); sys.exit(1)\n"
        "    write_frame(sys.stdout.buffer, {'ok': False, 'code': 'training-died'})\n"
    )
    real = asyncio.create_subprocess_exec

    async def start(python, *_, **kwargs):
        return await real(python, str(script), str(tmp_path / "asked"), **kwargs)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    client = TrainingClient(tmp_path / "log")
    for number, task in ((2, "whole"), (4, "half")):
        with pytest.raises(FedflowError) as caught:
            await train(client, tmp_path / "rows", task=task)
        assert caught.value.code == "training-died"
        assert (tmp_path / "asked").stat().st_size == number
    await client.close()


def resident(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such process")


@pytest.mark.slow
async def test_memory_does_not_grow_over_rounds(trainer, rows):
    large = bytes(4 << 20)  # not a model: each request fails, having read all of it

    async def use():
        await train(trainer, rows)
        with pytest.raises(FedflowError):
            await train(trainer, rows, model=large)

    for _ in range(3):
        await use()
    (holder,) = children(trainer._process.pid)
    before = resident(trainer._process.pid), resident(holder)
    for _ in range(50):
        await use()
    assert [holder] == children(trainer._process.pid)
    after = resident(trainer._process.pid), resident(holder)
    assert all(late - early < 3 * len(large) for early, late in zip(before, after, strict=True))


@pytest.mark.slow
async def test_nothing_outlives_the_daemon(tmp_path, rows):
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from fedflow.site.training_client import TrainingClient\n"
        "async def main():\n"
        "    client = TrainingClient(Path(sys.argv[1]))\n"
        "    plan = Path(sys.argv[3]).read_bytes()\n"
        "    await client.run('check', workload='trivial', data=Path(sys.argv[2]), plan=plan)\n"
        "    print(client._process.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    (tmp_path / "plan").write_bytes(PLAN.canonical())
    command = [sys.executable, "-c", script, tmp_path / "log", rows, tmp_path / "plan"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        warm = int(daemon.stdout.readline())
        family = [warm, *children(warm)]
        assert len(family) == 2
        daemon.kill()
    await eventually(lambda: not any(map(is_alive, family)))


def test_the_answer_is_a_plain_vector(rows):
    """What crosses to the daemon: a header without data, and the noised vector."""
    from fedflow.site.trainer import _answer, load

    asked = Holders(load, _answer)
    header = {
        "task": "train",
        "workload": "trivial",
        "data": str(rows),
        "plan": PLAN.canonical().decode(),
        "sites": 3,
        "value_range": 8.0,
    }
    out = io.BytesIO()
    asked.request("trivial", str(rows), lambda pipe: write_frame(pipe, header, MODEL), out)
    asked.forget()
    answer, payload = read_frame(io.BytesIO(out.getvalue()))
    assert answer == {"ok": True, "dtype": "int64"}
    assert np.frombuffer(payload, np.int64).size == 4
