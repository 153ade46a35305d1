"""An object store over HTTP: a real S3 endpoint on loopback, in a process that can be killed."""

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from job_room import Room, drive, make_plan

from fedflow.errors import InputError, Refusal, Violation
from fedflow.exchange import layout, open_exchange
from fedflow.orchestration.local_server import free_port

BUCKET = "federation"


class Endpoint:
    """moto's server. Killed, it forgets everything: what matters is what its client makes of it."""

    def __init__(self, log):
        self.port, self.log, self.process = free_port(), log, None
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 90
        while True:
            try:
                request = urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT")
                return urllib.request.urlopen(request, timeout=10).close()
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < end
                time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    made = Endpoint(tmp_path_factory.mktemp("s3") / "moto.log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        made.start()
        yield made
        made.kill()


def open_box(endpoint, name=""):
    folder = name or os.urandom(6).hex()
    return open_exchange(f"s3://{BUCKET}/{folder}?endpoint_url={endpoint.url}")


@pytest.fixture
def box(endpoint):
    return open_box(endpoint)


def test_objects_are_put_once_framed_limited_and_listed(box, endpoint):
    assert box.remote
    assert box.get("a/b") is None
    assert box.list("a") == []
    box.put("a/b", b"one")
    box.put("a/b", b"one")
    for other in (b"two", b"", b"one more"):
        with pytest.raises(Violation) as caught:
            box.put("a/b", other)
        assert caught.value.code == "already-put"
    box.put("a/empty", b"")
    assert (box.get("a/b"), box.get("a/empty")) == (b"one", b"")
    box.put("a/c/d", b"x")
    assert box.list("a") == ["b", "c", "empty"]
    with pytest.raises(Violation) as caught:
        box.get("a/b", 2)
    assert caught.value.code == "too-long"
    with pytest.raises(Violation) as caught:
        box.get("a")  # a folder
    assert caught.value.code == "not-an-object"


def test_what_was_put_by_another_client_is_seen_at_once(endpoint):
    first, second = open_box(endpoint, "shared"), open_box(endpoint, "shared")
    assert second.get("a/b") is None
    assert second.list("a") == []
    first.put("a/b", b"x")
    assert second.list("a") == ["b"]
    assert second.get("a/b") == b"x"


def test_damage_is_recognised(box):
    box.put("a/b", b"payload")
    path = f"{box._root}/a/b"
    stored = box._fs.cat_file(path)
    for changed, code in ((stored[:-1], "truncated"), (stored[:-1] + b"?", "damaged")):
        box._fs.pipe_file(path, changed)
        with pytest.raises(Violation) as caught:
            box.get("a/b")
        assert caught.value.code == code


def test_of_racing_writers_one_wins(endpoint):
    """The put is conditional at the store itself, so it holds between machines."""
    for attempt in range(3):
        boxes = [open_box(endpoint, "race") for _ in range(6)]
        barrier, won, lost = threading.Barrier(len(boxes)), [], []

        def write(number, box, key=f"a/{attempt}", barrier=barrier, won=won, lost=lost):
            barrier.wait()
            try:
                box.put(key, b"%d" % number)
                won.append(number)
            except Violation as error:
                lost.append(error.code)

        threads = [
            threading.Thread(target=write, args=(number, box)) for number, box in enumerate(boxes)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert lost == ["already-put"] * 5
        assert boxes[0].get(f"a/{attempt}") == b"%d" % won[0]


def test_only_the_address_is_set_in_the_url(endpoint):
    for query in ("secret=x", "key=a&secret=b", "endpoint_url", "anon=true"):
        with pytest.raises(InputError):
            open_exchange(f"s3://{BUCKET}/x?{query}")


def test_a_store_that_denies_is_a_refusal_and_not_waited_for(box, monkeypatch):
    def denied(*_, **__):
        raise PermissionError("Access Denied\x1b[31m")

    monkeypatch.setattr(box._fs, "info", denied)
    with pytest.raises(Refusal) as caught:
        box.get("a/b")
    assert caught.value.code == "not-allowed"
    assert "\x1b" not in str(caught.value)


@pytest.mark.slow
def test_an_outage_is_an_oserror_and_over_when_the_store_is_back(tmp_path, endpoint):
    own = Endpoint(tmp_path / "moto.log")
    own.start()
    box = open_box(own)
    box.put("a/b", b"x")
    own.kill()
    for use in (lambda: box.get("a/b"), lambda: box.put("a/c", b"y"), lambda: box.list("a")):
        with pytest.raises(OSError):
            use()
    own.start()
    assert box.get("a/b") is None  # this store forgets; a real one would not
    box.put("a/b", b"x")
    assert box.get("a/b") == b"x"
    own.kill()


@pytest.mark.slow
async def test_a_whole_job(endpoint, tmp_path):
    plan = make_plan(plan__rounds=1, deadlines__round_seconds=60.0, deadlines__leg_seconds=30.0)
    room = Room(tmp_path, plan, exchange=open_box(endpoint))
    for site in room.sites.values():
        site.exchange = room.exchange
    room.spy.inner = room.exchange
    room.start()
    await drive(room.runner(), join_seconds=60.0)
    ends = await room.ends()
    assert {end.outcome for end in ends.values()} == {"completed"}
    assert room.exchange.get(layout.end("test-job")) is not None
    await room.stop()
