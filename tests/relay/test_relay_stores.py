"""What is under a relay: folder and PostgreSQL agree, survive being killed, keep nothing half."""

import asyncio
import hashlib
import os
import signal
import socket
import threading
import time

import pytest
from relay_room import (
    JOB,
    Parties,
    RelayInThread,
    RelayProcess,
    folder_relay,
    sign_request,
    until,
)
from servers import Postgres

from fedflow.errors import Violation
from fedflow.exchange import layout
from fedflow.exchange.frame import frame
from fedflow.exchange.relay import RelayExchange
from fedflow.relay.postgres import PART_BYTES, PostgresStore
from fedflow.relay.retention import remove_old_jobs
from fedflow.relay.store import FolderStore
from fedflow.wire.messages import JobEnd
from fedflow.wire.sealed import seal


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    with Postgres(tmp_path_factory.mktemp("database"), durable=True) as server:
        yield server


@pytest.fixture(params=["folder", "postgres"])
async def store(request, tmp_path):
    if request.param == "folder":
        made = FolderStore(tmp_path / "store")
    else:
        server = request.getfixturevalue("database")
        made = PostgresStore(server.create_database(f"d{os.urandom(6).hex()}"))
    yield made
    await made.close()


async def test_a_store_puts_once_gets_lists_and_counts(store):
    assert await store.get("jobs/a/manifest") is None
    assert await store.size("jobs/a/manifest") is None
    assert await store.names("jobs") == []
    large = os.urandom(2 * PART_BYTES + 17)
    objects = {
        "jobs/a/manifest": b"m",
        "jobs/a/blobs/x": large,
        "jobs/ab/end": b"",
        "jobs/a0": b"0",
    }
    for key, payload in objects.items():
        await store.put(key, payload)
        await store.put(key, payload)
        for other in (b"other", payload + b"x", large[:-1] + b"!"):
            with pytest.raises(Violation) as caught:
                await store.put(key, other)
            assert caught.value.code == "already-put"
        assert await store.get(key) == payload
        assert await store.size(key) == len(payload)
    assert await store.names("jobs") == ["a", "a0", "ab"]
    assert await store.names("jobs/a") == ["blobs", "manifest"]
    found = {key: size for key, size, stored in await store.below("jobs/a") if stored > 1e9}
    assert found == {"jobs/a/manifest": 1, "jobs/a/blobs/x": len(large)}
    await store.remove("jobs/a")
    assert await store.names("jobs") == ["a0", "ab"]
    assert await store.get("jobs/a/blobs/x") is None
    await store.put("jobs/a/blobs/x", b"new")


async def test_of_many_writers_one_wins(store):
    async def write(number):
        try:
            await store.put("contested", b"%d" % number * PART_BYTES)
        except Violation:
            return None
        return number

    won = [n for n in await asyncio.gather(*(write(n) for n in range(6))) if n is not None]
    assert len(won) == 1
    assert await store.get("contested") == b"%d" % won[0] * PART_BYTES


async def test_two_relays_may_make_the_tables_at_once(database):
    url = database.create_database("both")
    stores = [PostgresStore(url) for _ in range(4)]
    await asyncio.gather(*(store.put("a/b", b"x") for store in stores))
    for store in stores:
        await store.close()


async def test_damaged_rows_are_recognised(database):
    store = PostgresStore(database.create_database("damaged"))
    await store.put("a/b", b"x")
    await store.put("a/c", bytes(PART_BYTES + 1))
    database.query("update fedflow_objects set body = 'y' where key = 'a/b'", "damaged")
    database.query("delete from fedflow_parts where part = 1", "damaged")
    for key in ("a/b", "a/c"):
        with pytest.raises(Violation) as caught:
            await store.get(key)
        assert caught.value.code == "damaged"
    await store.close()


@pytest.mark.slow
def test_a_relay_survives_its_database_being_killed(database):
    parties = Parties()
    url = database.create_database("killed")
    relay = RelayInThread(PostgresStore(url), parties).start()
    relay.publish()
    alpha = relay.as_(parties.sites["alpha"])
    alpha.put(layout.up(JOB, 1, "advert", 0), b"before")
    large = os.urandom(3 * PART_BYTES)
    model = layout.blob(JOB, hashlib.sha256(large).digest())
    relay.as_(parties.coordinator).put(model, large)
    database.kill()
    with pytest.raises(OSError, match="503"):
        alpha.put(layout.up(JOB, 2, "advert", 0), b"during")
    with pytest.raises(OSError, match="503"):
        alpha.get(layout.up(JOB, 1, "advert", 0))
    database.start()

    def works():
        try:
            alpha.put(layout.up(JOB, 2, "advert", 0), b"after")
        except OSError:
            return False
        return True

    until(works, "the relay finds its database again")
    assert alpha.get(layout.up(JOB, 1, "advert", 0)) == b"before"
    assert alpha.get(layout.up(JOB, 2, "advert", 0)) == b"after"
    assert alpha.get(model) == large
    relay.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "postgres"])
def test_a_relay_killed_while_it_is_written_to_leaves_nothing_half(kind, tmp_path, request):
    parties = Parties()
    roster = tmp_path / "roster"
    roster.write_bytes(parties.roster(1))
    where = [str(tmp_path / "store")]
    if kind == "postgres":
        url = request.getfixturevalue("database").create_database("relay")
        where = ["--database", url]
    process = RelayProcess(
        *where,
        "--roster",
        str(roster),
        authority=parties.authority.public.hex(),
        log=tmp_path / "relay.log",
    ).start()
    authority = RelayExchange(process.url, parties.authority)
    until(lambda: authority.list("federation/roster") == ["000001"], "the member list is put")
    authority.put(layout.manifest(JOB), parties.manifest())
    alpha = RelayExchange(process.url, parties.sites["alpha"])
    chunk = os.urandom(1 << 18)
    done, stop = set(), threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            try:
                alpha.put(layout.vector(JOB, 1, 0, number), chunk)
            except OSError:
                stop.wait(0.02)
                continue
            done.add(number)
            number += 1

    def more():
        least = len(done) + 3
        until(lambda: len(done) >= least, "some chunks are put")

    writer = threading.Thread(target=write)
    writer.start()
    # And one body that is cut in the middle by the kill itself.
    target = "/v1/objects/" + layout.vector(JOB, 2, 0, 0)
    header = sign_request(parties.sites["alpha"], "PUT", target, chunk)
    for _ in range(2):
        more()
        with socket.create_connection(("127.0.0.1", process.port), timeout=60) as link:
            link.sendall(
                f"PUT {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n"
                f"Content-Length: {len(chunk)}\r\n\r\n".encode()
                + chunk[: len(chunk) // 2]
            )
            process.end(signal.SIGKILL)
        process.start()
    more()
    stop.set()
    writer.join(60)
    names = alpha.list(f"jobs/{JOB}/rounds/000001/up/vector/0")
    assert {int(name) for name in names} >= done
    for name in names:
        assert alpha.get(layout.vector(JOB, 1, 0, int(name))) == chunk
    assert alpha.get(layout.vector(JOB, 2, 0, 0)) is None
    alpha.put(layout.vector(JOB, 2, 0, 0), chunk)
    assert process.end(signal.SIGTERM) in (0, -signal.SIGTERM)  # ended in good order first
    if kind == "folder":
        kept = tmp_path / "store" / "jobs" / JOB / "rounds"
        for path in kept.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                assert path.read_bytes() == frame(chunk)


async def test_only_jobs_that_are_over_are_removed_and_whole(tmp_path):
    parties = Parties()
    relay = folder_relay(tmp_path, parties)
    store, day, now = relay.objects.store, 86_400.0, time.time()
    await store.put(layout.federation_roster(1), parties.roster(1))
    for job, over in (("runs", 3600), ("ended", 3600), ("forged", 3600), ("expired", 60)):
        manifest = parties.manifest(job, created=int(now), not_after=int(now) + over * 1000)
        await store.put(layout.manifest(job), manifest)
        await store.put(layout.up(job, 1, "advert", 0), b"x")
    await store.put(layout.blob("no-manifest", bytes(32)), b"x")
    end = JobEnd(bytes(32), 1, "completed", "done", bytes(32))
    await store.put(layout.end("ended"), seal(parties.coordinator, end))
    await store.put(layout.end("forged"), seal(parties.other, end))
    assert await remove_old_jobs(relay.objects, 2, lambda: now + day) == []  # too young
    removed = await remove_old_jobs(relay.objects, 2, lambda: now + 3 * day)
    assert removed == ["ended", "expired", "no-manifest"]
    assert await store.names("jobs") == ["forged", "runs"]
    assert await store.names("jobs/runs") == ["manifest", "rounds"]
    assert not list((tmp_path / "store").glob(".removed-*"))
    (tmp_path / "store" / ".removed-half" / "jobs").mkdir(parents=True)
    FolderStore(tmp_path / "store")
    assert not list((tmp_path / "store").glob(".removed-*"))
