"""A whole job over a relay: every party through its own door, then mirrored and audited."""

import time

import pytest
from job_room import JOB, Room, drive, make_plan
from relay_room import RelayInThread, member
from typer.testing import CliRunner

from fedflow.audit.verify import verify_folder
from fedflow.cli.main import app
from fedflow.coordinator.job import write_roster
from fedflow.crypto.identity import Identity
from fedflow.exchange import MemoryExchange, layout, open_exchange
from fedflow.exchange.copying import copy_job
from fedflow.exchange.places import OF_SITE, place
from fedflow.relay.limits import Limits
from fedflow.relay.store import FolderStore
from fedflow.wire.membership import FederationRoster, Role
from fedflow.wire.sealed import seal


class _Keys:
    """What a relay's helper needs of a room's parties."""

    def __init__(self, room):
        self.authority = room.authority


@pytest.fixture
async def over_relay(tmp_path):
    """A room whose coordinator and sites each sign their own requests."""
    room = Room(tmp_path, make_plan(deadlines__round_seconds=60.0, deadlines__leg_seconds=30.0))
    relay = RelayInThread(
        FolderStore(tmp_path / "store"), _Keys(room), Limits(site_rate=5000.0)
    ).start()
    members = [member(Role.SITE, label, site.identity) for label, site in room.sites.items()]
    members.append(member(Role.COORDINATOR, "main", room.coordinator_identity))
    auditor = Identity.generate()
    members.append(member(Role.AUDITOR, "officer", auditor))
    roster = FederationRoster("fed", 1, int(time.time()), tuple(members))
    authority = relay.as_(room.authority)
    authority.put(layout.federation_roster(1), seal(room.authority, roster))
    memory = room.exchange
    for key in sorted(memory.objects, reverse=True):  # the manifest, then the first model
        authority.put(key, memory.objects[key])
    memory.objects.clear()
    room.spy.inner = relay.as_(room.coordinator_identity)
    for site in room.sites.values():
        site.exchange = relay.as_(site.identity)
    room.auditor = auditor
    yield room, relay
    await room.stop()
    relay.stop()


@pytest.mark.slow
async def test_a_job_over_a_relay_copied_and_audited(over_relay, tmp_path, monkeypatch):
    room, relay = over_relay
    requests: dict[str, int] = {}
    for label, site in room.sites.items():
        count_requests(site.exchange, label, requests, monkeypatch)
    room.start()
    runner = await drive(room.runner(), join_seconds=60.0)
    ends = await room.ends()
    assert {end.outcome for end in ends.values()} == {"completed"}
    rounds = len(runner.records)
    assert rounds == room.plan.plan.rounds
    objects = await room_objects(relay, room)
    for index, label in enumerate(sorted(room.sites)):
        puts = sum(place(key).site == index and place(key).kind in OF_SITE for key in objects)
        # Each answer of the coordinator, and what is read of an outcome, in about one request.
        assert requests[label] < 6 * puts + 40, (requests, puts)

    folder = tmp_path / "audit"
    target = folder / "exchange"
    key = tmp_path / "officer.pem"
    room.auditor.save(key)
    arguments = ["exchange", "copy", "--job", JOB, relay.url, str(target), "--identity", str(key)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"{len(objects)} objects" in done.output
    again = CliRunner().invoke(app, arguments)
    assert f"{len(objects)} of them there before" in again.output.replace("\n", " ")
    write_roster(folder / "audit" / "roster.json", room.job, room.authority.public)
    (folder / "audit" / "ledgers").mkdir()
    for label, site in room.sites.items():
        site.ledger.export(folder / "audit" / "ledgers" / f"{label}.jsonl")
    report = verify_folder(folder)
    assert report.ok, report.as_dict()["findings"]


async def room_objects(relay, room):
    return [key for key, _, _ in await relay.objects.store.below(layout.job(JOB))]


def count_requests(exchange, label, counts, monkeypatch):
    inner, counts[label] = exchange._header, 0

    def header(*arguments):
        counts[label] += 1
        return inner(*arguments)

    monkeypatch.setattr(exchange, "_header", header)


def test_a_copy_says_what_it_left_out_and_goes_on(tmp_path):
    source, target = MemoryExchange(), open_exchange(str(tmp_path / "target"))
    source.put(layout.manifest("j"), b"m")
    source.put(layout.order("j", 1), b"o")
    source.put(layout.vector("j", 1, 0, 0), b"v")
    source.put(layout.end("j"), b"e")
    source.put("jobs/j/rounds/000001/up/strange/0", b"no place")
    target.put(layout.order("j", 1), b"other")
    seen = []
    result = copy_job(source, target, "j", lambda done, total: seen.append((done, total)))
    assert [name for name, _ in result.left_out] == [layout.order("j", 1)]
    assert target.get(layout.order("j", 1)) == b"other"
    assert target.get(layout.vector("j", 1, 0, 0)) == b"v"
    assert target.get("jobs/j/rounds/000001/up/strange/0") is None
    assert seen[-1][0] == seen[-1][1]
    assert result.skipped == 0
    assert copy_job(source, target, "j", lambda *_: None).skipped == 3
