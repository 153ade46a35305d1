"""Full disks: of a site, the coordinator, the exchange, a relay. Nothing is lost and nothing leaves
unrecorded; what failed says so; and with room again everything goes on.
"""

import asyncio
import dataclasses
import hashlib
import os
import shutil
import subprocess
import time

import pytest
from chaos_disk import small_disk
from job_room import JOB, Room, drive, make_plan

from fedflow.crypto.identity import Identity
from fedflow.exchange import layout, open_exchange
from fedflow.learning.model_file import model_digest
from fedflow.orchestration.local_server import free_port
from fedflow.privacy.ledger import Ledger
from fedflow.tied import tied_command
from fedflow.wire.membership import FederationRoster, Member, Role
from fedflow.wire.messages import Kind
from fedflow.wire.sealed import seal


def released(room, site):
    """Masked messages of a site in the exchange, by order."""
    found = {}
    for sequence in layout.sequences(room.exchange.list(layout.rounds(JOB))):
        data = room.exchange.get(layout.up(JOB, sequence, "masked", site.index))
        if data is not None:
            found[sequence] = data
    return found


def assert_all_paid_once(room):
    for site in room.sites.values():
        ledger = Ledger.open(site.path / "ledger.sqlite", site.identity.public)
        paid = [e for e in ledger.entries() if e.kind == "reserve"]
        ledger.close()
        assert len({e.context for e in paid}) == len(paid)
        hashes = {e.release_hash for e in paid}
        assert all(hashlib.sha256(d).digest() in hashes for d in released(room, site).values())


def move(site, folder):
    """Put a site's folder somewhere else, as if it had always been there."""
    site.ledger.close()
    shutil.move(site.path, folder)
    site.path = folder
    site.ledger = Ledger.open(folder / "ledger.sqlite", site.identity)


@pytest.mark.parametrize("leave", [0, 8192, 24576])
async def test_a_site_without_room_releases_nothing_unpaid_and_takes_part_again(tmp_path, leave):
    """Spool, journal, ledger: wherever the room ends, no byte leaves without its entry."""
    with small_disk(tmp_path / "disk", 768) as disk:
        room = Room(tmp_path / "room", make_plan(plan__rounds=3))
        site = room.sites["alpha"]
        move(site, disk.path / "alpha")

        def fill(key, payload):
            if "/000001/up/shares/" in key:
                disk.fill(leave)

        site.exchange.after_put = fill
        room.start()
        runner = room.runner()
        runner.resume()
        await runner.wait_for_sites(5)
        runner.dispatch(1, 1, Kind.TRAIN)
        first = await runner.collect()
        if leave == 0:
            assert not released(room, site)
            assert site.index not in first.outcome.survivors
            assert not site.charges()
        assert_all_paid_once(room)
        runner.update(first)

        disk.empty()
        # Nobody waits for a site that fell silent: it may miss one more cohort, and says so.
        for number in (2, 3):
            runner.dispatch(number, 1, Kind.TRAIN)
            last = await runner.collect()
            runner.update(last)
        assert site.index in last.outcome.survivors
        assert 3 in released(room, site)
        assert_all_paid_once(room)
        await room.stop()


async def test_a_coordinator_without_room_for_its_checkpoint_goes_on_from_what_it_published(
    tmp_path,
):
    with small_disk(tmp_path / "disk", 256) as disk:
        room = Room(tmp_path / "room")
        path = disk.path / "coordinator"
        room.folder_of_coordinator = dataclasses.replace(room.folder_of_coordinator, path=path)
        room.start()
        runner = room.runner()
        published = []

        def fill(key, payload):
            if key.endswith("/transcript") and not published:
                published.append(key)
                disk.fill()

        room.spy.after_put = fill
        with pytest.raises(OSError, match="No space left"):
            await drive(runner)
        assert published == [layout.transcript(JOB, 1)]
        before = runner.model_digest
        disk.empty()

        done = await drive(room.runner())
        assert [r.number for r in done.records] == [1, 2]
        model = room.exchange.get(layout.blob(JOB, done.model_digest))
        assert model_digest(model) == done.model_digest
        # The sum of round 1 was opened once, and its model is the one it had made before.
        orders = layout.sequences(room.exchange.list(layout.rounds(JOB)))
        transcripts = [s for s in orders if room.exchange.get(layout.transcript(JOB, s))]
        assert transcripts == orders
        assert room.exchange.get(layout.blob(JOB, before)) is not None or before in (
            room.manifest.initial_model,
        )
        assert_all_paid_once(room)
        await room.ends()
        await room.stop()


async def test_an_exchange_without_room_is_waited_for(tmp_path):
    """What could not be put is put when there is room: whole, and the same bytes."""
    with small_disk(tmp_path / "disk", 1024) as disk:
        exchange = open_exchange(str(disk.path / "exchange"))
        room = Room(tmp_path / "room", exchange=exchange, max_attempts=5)
        filled = []

        def fill(key, payload):
            if "/up/shares/" in key and not filled:
                filled.append(key)
                disk.fill()
                asyncio.get_running_loop().call_later(1.0, disk.empty)

        room.sites["beta"].exchange.after_put = fill
        room.start()
        runner = await drive(room.runner())
        assert filled
        assert [r.number for r in runner.records] == [1, 2]
        ends = await room.ends()
        assert {(e.outcome, e.code) for e in ends.values()} == {("completed", "completed")}
        assert_all_paid_once(room)
        await room.stop()
        assert not list((disk.path / "exchange").rglob(".*"))


def test_a_relay_without_room_says_so_and_takes_the_object_when_there_is_some(tmp_path):
    authority, coordinator = Identity.generate(), Identity.generate()
    now = int(time.time())
    member = Member(Role.COORDINATOR, "c", coordinator.public.raw, now - 60, now + 9999, 0)
    (tmp_path / "roster").write_bytes(seal(authority, FederationRoster("small", 1, now, (member,))))
    with small_disk(tmp_path / "disk", 512) as disk:
        port = free_port()
        command = ["-m", "fedflow.cli.main", "exchange", "serve", str(disk.path / "exchange")]
        command += ["--authority", authority.public.hex(), "--port", str(port)]
        command += ["--roster", str(tmp_path / "roster")]
        with open(tmp_path / "relay.log", "wb") as log:
            process = subprocess.Popen(
                tied_command(command), stdout=log, stderr=log, env=dict(os.environ)
            )
        try:
            relay = open_exchange(f"http://127.0.0.1:{port}", authority)
            first, second = b"x" * 1000, b"y" * 200_000
            wait_until(lambda: try_put(relay, blob("one", first), first), process)
            disk.fill()
            with pytest.raises(OSError):
                relay.put(blob("one", second), second)
            assert relay.get(blob("one", second)) is None
            assert relay.get(blob("one", first)) == first
            disk.empty()
            relay.put(blob("one", second), second)
            assert relay.get(blob("one", second)) == second
        finally:
            process.kill()
            process.wait()
        assert not list((disk.path / "exchange").rglob(".*"))
        stored = open_exchange(str(disk.path / "exchange"))
        assert stored.get(blob("one", second)) == second


def blob(job, data):
    return layout.blob(job, hashlib.sha256(data).digest())


def try_put(relay, key, data):
    try:
        relay.put(key, data)
    except OSError:
        return False
    return True


def wait_until(condition, process):
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the relay ended"
        assert time.monotonic() < until, "the relay does not answer"
        time.sleep(0.05)
