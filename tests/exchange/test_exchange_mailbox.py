"""The mailbox: put once, whole or not at all, checked on reading; memory and folder agree."""

import os
import threading

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedflow.errors import InputError, Misuse, Violation
from fedflow.exchange import FsspecExchange, MemoryExchange, frame, layout, open_exchange, unframe
from fedflow.exchange.base import check_key, get_blob
from fedflow.exchange.frame import HEADER


@pytest.fixture(params=["memory", "folder", "fsspec"])
def mailbox(request, tmp_path):
    if request.param == "memory":
        return MemoryExchange()
    if request.param == "folder":
        return open_exchange(str(tmp_path / "exchange"))
    fs = fsspec.filesystem("memory", skip_instance_cache=True)
    return FsspecExchange(fs, f"/box-{os.urandom(8).hex()}")


@pytest.fixture
def folder(tmp_path):
    return open_exchange(str(tmp_path / "exchange"))


def stored(tmp_path, key):
    return tmp_path / "exchange" / key


def test_what_was_put_is_got_back(mailbox):
    assert mailbox.get("a/b") is None
    mailbox.put("a/b", b"payload")
    mailbox.put("a/empty", b"")
    assert mailbox.get("a/b") == b"payload"
    assert mailbox.get("a/empty") == b""


def test_a_name_is_taken_once(mailbox):
    mailbox.put("a/b", b"one")
    mailbox.put("a/b", b"one")  # a retry
    for other in (b"two", b"", b"one more", b"on"):
        with pytest.raises(Violation) as caught:
            mailbox.put("a/b", other)
        assert caught.value.code == "already-put"
    assert mailbox.get("a/b") == b"one"


def test_listing_names_direct_children_only(mailbox):
    assert mailbox.list("jobs") == []
    for key in ("jobs/x/b", "jobs/x/a/deep", "jobs/x/a/deeper", "jobs/xy/c"):
        mailbox.put(key, b"1")
    assert mailbox.list("jobs") == ["x", "xy"]
    assert mailbox.list("jobs/x") == ["a", "b"]
    assert mailbox.list("jobs/none") == []


def test_a_reader_states_how_much_it_takes(mailbox):
    mailbox.put("a", b"x" * 100)
    assert mailbox.get("a", 100) == b"x" * 100
    with pytest.raises(Violation) as caught:
        mailbox.get("a", 99)
    assert caught.value.code == "too-long"


BAD_NAMES = [
    "", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/..", ".", "./a", ".hidden", "a/.b",
    "a\\b", "a b", "a\n", "a\0b", "ä", "~", "-a", "a/-b", "c:", "http://x", "a*", "x" * 513,
]  # fmt: skip


@pytest.mark.parametrize("key", BAD_NAMES)
def test_names_that_leave_the_folder_or_hide_are_our_own_bug(mailbox, key):
    for use in (lambda: mailbox.put(key, b""), lambda: mailbox.get(key), lambda: mailbox.list(key)):
        with pytest.raises(Misuse):
            use()


@given(st.text(max_size=30))
def test_a_valid_name_stays_below_the_root(key):
    try:
        check_key(key)
    except Misuse:
        return
    assert os.path.normpath(f"/root/{key}") == f"/root/{key}"
    assert all(part and part[0].isalnum() for part in key.split("/"))


def test_every_name_of_the_layout_is_valid():
    job, digest = "a" * 63, bytes(32)
    keys = [
        layout.manifest(job),
        layout.countersign(job, 65_535),
        layout.hello(job, 65_535, digest),
        layout.order(job, 1),
        layout.up(job, 999_999, "masked", 65_535),
        layout.down(job, 1, "roster"),
        layout.down(job, 1, "delivery", 3),
        layout.transcript(job, 1),
        layout.end(job),
        layout.blob(job, digest),
    ]
    assert len({check_key(key) for key in keys}) == len(keys)


def test_only_six_digits_are_an_order_number():
    names = ["000002", "000001", "1", "²²²²²²", "00000١", "0000001", "abc", ".000001", "000001x"]
    assert layout.sequences(names) == [1, 2]


names = st.sampled_from(["a", "b", "dir/a", "dir/b", "dir/sub/a"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), names, st.binary(max_size=4)),
        st.tuples(st.just("get"), names, st.integers(0, 5)),
        st.tuples(st.just("list"), st.sampled_from(["dir", "dir/sub", "none"]), st.none()),
    ),
    max_size=20,
)


@given(steps)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_memory_and_folder_behave_the_same(tmp_path, script):
    memory = MemoryExchange()
    disk = open_exchange(str(tmp_path / os.urandom(8).hex()))
    for verb, key, argument in script:
        answers = []
        for box in (memory, disk):
            try:
                call = getattr(box, verb)
                answers.append(call(key) if argument is None else call(key, argument))
            except Violation as error:
                answers.append(error.code)
        assert answers[0] == answers[1]


# ---- frames


@given(st.binary(max_size=100))
def test_a_frame_gives_back_its_payload(payload):
    assert unframe(frame(payload)) == payload


@given(st.binary(max_size=60), st.data())
def test_a_damaged_frame_is_recognised(payload, data):
    framed = bytearray(frame(payload))
    at = data.draw(st.integers(0, len(framed) - 1))
    framed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Violation):
        unframe(bytes(framed))


@given(st.binary(max_size=120))
def test_garbage_is_no_frame(data):
    with pytest.raises(Violation):
        unframe(data)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d[:-1], "truncated"),
        (lambda d: d[:HEADER], "truncated"),
        (lambda d: d[: HEADER - 1], "truncated"),
        (lambda d: d[:2], "truncated"),
        (lambda d: b"", "truncated"),
        (lambda d: d + b"x", "trailing-bytes"),
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "damaged"),
        (lambda d: d[:12] + bytes(32) + d[44:], "damaged"),
        (lambda d: b"GIF8" + d[4:], "not-an-object"),
    ],
)
def test_a_damaged_object_is_refused_by_name(tmp_path, folder, change, code):
    folder.put("a/b", b"payload")
    path = stored(tmp_path, "a/b")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(Violation) as caught:
        folder.get("a/b")
    assert caught.value.code == code
    with pytest.raises(Violation) as caught:  # the name stays taken
        folder.put("a/b", b"payload")
    assert caught.value.code == "already-put"


def test_an_oversized_object_is_refused_before_it_is_read(tmp_path, folder):
    path = stored(tmp_path, "a/b")
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take all memory
    with pytest.raises(Violation) as caught:
        folder.get("a/b", 1000)
    assert caught.value.code == "too-long"
    with pytest.raises(Violation) as caught:
        folder.get("a/b")
    assert caught.value.code == "too-long"
    with pytest.raises(Violation) as caught:
        folder.put("a/b", b"mine")
    assert caught.value.code == "already-put"


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_instead_of_waited_for(tmp_path, folder):
    (tmp_path / "exchange" / "dir").mkdir(parents=True)
    os.mkfifo(tmp_path / "exchange" / "pipe")
    for key in ("dir", "pipe"):
        with pytest.raises(Violation) as caught:
            folder.get(key)
        assert caught.value.code == "not-an-object"
        with pytest.raises(Violation) as caught:
            folder.put(key, b"mine")
        assert caught.value.code == "already-put"


def test_a_blob_must_match_its_name(mailbox):
    import hashlib

    digest = hashlib.sha256(b"model").digest()
    key = layout.blob("job", digest)
    assert get_blob(mailbox, key, digest, 100) is None
    mailbox.put(key, b"model")
    assert get_blob(mailbox, key, digest, 100) == b"model"
    mailbox.put("other", b"other")
    with pytest.raises(Violation) as caught:
        get_blob(mailbox, "other", digest, 100)
    assert caught.value.code == "wrong-digest"


# ---- atomic


def test_a_reader_sees_all_of_an_object_or_nothing(folder):
    payload, failures, stop = os.urandom(3_000_000), [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                for number in range(6):
                    assert folder.get(f"big/{number}") in (None, payload)
                assert not [n for n in folder.list("big") if n.startswith(".")]
            except Exception as error:
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(6):
        folder.put(f"big/{number}", payload)
    stop.set()
    reader.join()
    assert failures == []


def test_of_many_writers_one_wins_and_the_others_know(folder):
    outcomes, barrier = [], threading.Barrier(8)

    def write(number):
        barrier.wait()
        try:
            folder.put("contested", b"%d" % number)
            outcomes.append(number)
        except Violation:
            pass

    writers = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(outcomes) == 1
    assert folder.get("contested") == b"%d" % outcomes[0]


def test_a_writer_that_died_leaves_nothing_to_see(tmp_path, folder, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", die)
        with pytest.raises(KeyboardInterrupt):
            folder.put("a/b", b"half")
    assert folder.get("a/b") is None
    assert folder.list("a") == []
    assert list((tmp_path / "exchange" / "a").iterdir()) == []
    folder.put("a/b", b"whole")


def test_an_unknown_kind_of_exchange_is_named():
    with pytest.raises(InputError) as caught:
        open_exchange("warp://somewhere/else")
    assert "warp" in str(caught.value)
    assert "allowed" in str(caught.value)
