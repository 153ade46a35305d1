"""Whole jobs with the real session, round and runner; only training is invented."""

import asyncio
import hashlib
import json

import numpy as np
import pytest
from job_room import JOB, Room, drive, make_plan

from fedflow.coordinator.job import write_roster
from fedflow.exchange import layout, open_exchange
from fedflow.learning.model_file import decode_model, flatten
from fedflow.privacy.ledger import Ledger
from fedflow.wire.messages import Kind


async def test_a_full_job_completes_and_its_model_is_the_mean_of_the_updates(room):
    room.start()
    runner = await drive(room.runner())
    ends = await room.ends()
    assert {(e.outcome, e.code) for e in ends.values()} == {("completed", "completed")}
    assert [r.number for r in runner.records] == [1, 2]
    assert all(len(r.sites) == 4 and not r.dropped and not r.refused for r in runner.records)
    assert runner.records[0].score is None
    assert 0.0 <= runner.records[1].score <= 1.0
    model = decode_model(room.exchange.get(layout.blob(JOB, runner.model_digest)), room.spec)
    updates = [[v for v in s.trainer.given if v.dtype == np.float32] for s in room.sites.values()]
    wanted = sum(np.mean([u[r] for u in updates], axis=0) for r in range(2))
    np.testing.assert_allclose(flatten(model), wanted, atol=1e-6)


async def test_the_same_job_over_a_folder(tmp_path):
    room = Room(tmp_path, exchange=open_exchange(str(tmp_path / "exchange")))
    room.start()
    runner = await drive(room.runner())
    assert len(runner.records) == 2
    await room.ends()
    await room.stop()
    left = [p.name for p in (tmp_path / "exchange").rglob(".*")]
    assert left == []


async def test_the_charge_is_on_disk_before_the_masked_vector_is_in_the_exchange(room):
    seen = []

    def watch(site):
        def before(key, payload):
            if "/up/masked/" in key:
                # Another process's view of the file: what a power cut at this moment would leave.
                ledger = Ledger.open(site.path / "ledger.sqlite", site.identity.public)
                paid = [e for e in ledger.entries() if e.kind == "reserve"]
                hashes = {e.release_hash for e in paid}
                kept = ledger.release(paid[-1].context) if paid else None
                ledger.close()
                seen.append(hashlib.sha256(payload).digest() in hashes and kept == payload)

        site.exchange.before_put = before

    for site in room.sites.values():
        watch(site)
    room.start()
    await drive(room.runner())
    assert seen == [True] * 12  # four sites, two training rounds, one evaluation
    charged = sum(len(s.charges()) for s in room.sites.values())
    assert charged == 12


async def test_every_reservation_is_settled_at_the_number_of_survivors(room):
    room.start()
    await drive(room.runner())
    await room.ends()
    for site in room.sites.values():
        settled = [e for e in site.ledger.entries() if e.kind == "settle"]
        assert [e.survivors for e in settled] == [4, 4, 4]
        assert {e.context for e in settled} == {e.context for e in site.charges()}


async def test_what_is_shown_of_rounds_holds_no_vector_and_no_key(room):
    room.start()
    runner = await drive(room.runner())
    write_roster(room.folder / "roster.json", room.job, room.authority.public)
    events = runner.coordinator.events_path(JOB).read_text()
    state = json.loads(runner.coordinator.state_path(JOB).read_text())
    assert set(state) == {
        "manifest", "sequence", "previous", "previous_sequence", "model", "value_range", "rounds",
        "tries",
    }  # fmt: skip
    for line in events.splitlines():
        assert set(json.loads(line)) <= {
            "event", "time", "round", "attempt", "kind", "sequence", "expected", "site", "leg",
            "outcome", "reason",
        }  # fmt: skip


async def test_a_coordinator_that_died_goes_on_after_its_last_checkpoint(room):
    room.start()
    first = room.runner()
    await first.wait_for_sites(5)

    def die(key, payload):
        if key == layout.order(JOB, 2):
            raise RuntimeError("coordinator died")

    room.spy.before_put = die
    with pytest.raises(RuntimeError):
        await drive(first, close=False)
    room.spy.before_put = lambda key, payload: None
    second = room.runner()
    assert second.next_round == 2
    await drive(second)
    assert [r.number for r in second.records] == [1, 2]
    assert {e.outcome for e in (await room.ends()).values()} == {"completed"}


async def test_a_coordinator_that_died_before_its_first_checkpoint_can_start_again(room):
    """Its first order is in the exchange: a second start must not try to take its name."""
    room.start()
    first = room.runner()
    await first.wait_for_sites(5)
    first.dispatch(1, 1, Kind.TRAIN)
    first._running.cancel()
    await asyncio.gather(first._running, return_exceptions=True)
    runner = await drive(room.runner())
    assert [len(r.sites) for r in runner.records] == [4, 4]


async def test_junk_in_the_exchange_does_not_mislead_anybody(room):
    for name in ("²", "999999", "abc", "00000١"):
        room.exchange.objects[f"jobs/{JOB}/rounds/{name}/order"] = b"junk"
    for name in ("²-00", "77-00", "0-ffff", "x"):
        room.exchange.objects[f"jobs/{JOB}/hello/{name}"] = b"junk"
    room.start()
    runner = await drive(room.runner())
    assert [len(r.sites) for r in runner.records] == [4, 4]


async def test_a_plan_of_three_sites_needs_all_its_minimum(tmp_path):
    room = Room(tmp_path, make_plan(plan__rounds=1), labels=("a", "b", "c"))
    room.start()
    runner = await drive(room.runner())
    assert len(runner.records[0].sites) == 3
    await room.stop()
