"""The coordinator loses power at every durable step of a job and starts again over its folder.

The sites keep running. Whatever the step: the job finishes, a sum that was published is never
ordered again, no site ever releases two vectors under one context, every masked vector is paid for
once, and the audit verifies.
"""

import asyncio
import collections
import hashlib

import pytest
from job_room import JOB, PowerCut, Room, drive, make_plan

from fedflow.audit.verify import verify_folder
from fedflow.coordinator.job import write_roster
from fedflow.coordinator.records import Checkpoint
from fedflow.exchange import layout, open_exchange
from fedflow.secagg.messages import Advert, Masked
from fedflow.wire.messages import JobEnd, Kind
from fedflow.wire.sealed import unseal

#: Per sum: order, roster, four deliveries, survivors, consistency, sum chunk, transcript.
SUM = 10
#: Two training rounds (with a model) and one evaluation, with a checkpoint each; the end.
STEPS = 2 * (SUM + 2) + (SUM + 1) + 1


class Steps:
    """Counts what the coordinator makes durable, and cuts its power just before one of them."""

    def __init__(self, room, monkeypatch):
        self.room, self.done, self.cut_before = room, 0, None
        real = Checkpoint.save

        def save(checkpoint, path):
            self.step()
            real(checkpoint, path)

        monkeypatch.setattr(Checkpoint, "save", save)
        room.spy.before_put = lambda key, payload: self.step()

    def step(self):
        if self.done == self.cut_before:
            self.cut_before = None
            raise PowerCut(self.done)
        self.done += 1


@pytest.fixture
async def room(tmp_path):
    plan = make_plan(deadlines__round_seconds=2.0, deadlines__leg_seconds=1.5)
    made = Room(tmp_path, plan)
    yield made
    await made.stop()


async def run_with_cuts(room, steps, *cuts):
    """Run the job, losing power before the given steps (each counted from the last start)."""
    room.start()
    for cut in (*cuts, None):
        steps.done, steps.cut_before = 0, cut
        runner = room.runner()
        try:
            return await drive(runner)
        except PowerCut:
            running = runner._running
            if running is not None:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
    raise AssertionError("unreachable")


def orders(room):
    return len(layout.sequences(room.exchange.list(layout.rounds(JOB))))


async def check(room, runner):
    ends = await room.ends()
    assert {(end.outcome, end.code) for end in ends.values()} == {("completed", "completed")}
    assert [record.number for record in runner.records] == [1, 2]
    end = unseal(JobEnd, room.exchange.get(layout.end(JOB)), room.coordinator_identity.public)
    assert (end.outcome, end.model) == ("completed", runner.model_digest)
    masked = collections.defaultdict(list)
    for key, payload in room.exchange.objects.items():
        if "/up/masked/" in key:
            masked[Masked.decode(payload).site].append(payload)
        if "/up/advert/" in key:  # they never lose the thread
            assert Advert.decode(payload).vouches == 1, key
    for site in room.sites.values():
        entries = {e.release_hash: e for e in site.charges()}
        hashes = {hashlib.sha256(data).digest() for data in masked[site.index]}
        assert hashes == set(entries)
        released = [entries[digest] for digest in sorted(hashes)]
        contexts = [entry.context for entry in released]
        assert len(set(contexts)) == len(contexts) >= 3
        assert len({e.context for e in entries.values()}) == len(site.charges())
        assert not list((site.path / "spool").glob("*"))
    audit(room)


def audit(room):
    """What an auditor says of everything the job left behind."""
    folder = room.folder / "audited"
    exchange = open_exchange(str(folder / "exchange"))
    for key, payload in room.exchange.objects.items():
        exchange.put(key, payload)
    write_roster(folder / "audit" / "roster.json", room.job, room.authority.public)
    (folder / "audit" / "ledgers").mkdir()
    for site in room.sites.values():
        site.ledger.export(folder / "audit" / "ledgers" / f"{site.label}.jsonl")
    report = verify_folder(folder)
    assert report.ok, [f for f in report.findings if f.severity == "error"]
    return report


async def test_a_quiet_job_has_these_durable_steps(room, monkeypatch):
    steps = Steps(room, monkeypatch)
    runner = await run_with_cuts(room, steps)
    assert steps.done == STEPS
    await check(room, runner)


def ordered_again(cut):
    """Whether an order was open, without a published sum, when power was lost before this step."""
    before = cut % (SUM + 2) if cut < 2 * (SUM + 2) else cut - 2 * (SUM + 2)
    return 1 <= before < SUM


@pytest.mark.slow
@pytest.mark.parametrize("cut", range(STEPS))
async def test_power_lost_before_any_step_costs_an_open_sum_at_most(room, monkeypatch, cut):
    steps = Steps(room, monkeypatch)
    runner = await run_with_cuts(room, steps, cut)
    await check(room, runner)
    assert orders(room) == 3 + ordered_again(cut)
    assert all(len(site.charges()) <= orders(room) for site in room.sites.values())
    assert runner.records[-1].score is not None
    # what died with the process is said to be missing
    assert runner.records[0].rebuilt == (SUM <= cut < SUM + 2)


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [(10, 0), (10, 10), (11, 11, 11), (21, 9, 1), (30, 33), (34, 0)])
async def test_power_lost_again_and_again(room, monkeypatch, cuts):
    steps = Steps(room, monkeypatch)
    runner = await run_with_cuts(room, steps, *cuts)
    await check(room, runner)


async def test_a_published_sum_is_adopted_and_nobody_pays_twice(room, monkeypatch):
    steps = Steps(room, monkeypatch)
    runner = await run_with_cuts(room, steps, SUM)  # the transcript is there, the model is not
    await check(room, runner)
    room.folder = room.folder / "again"
    assert "abandoned-sum" not in {f.code for f in audit(room).findings}
    assert {len(site.charges()) for site in room.sites.values()} == {3}
    record = runner.records[0]
    assert (record.rebuilt, record.seconds, record.sites) == (True, 0.0, sorted(room.sites))


async def test_a_sum_that_makes_no_model_is_an_aborted_attempt(room, monkeypatch):
    """A site that weighs itself twice costs the attempt, by name; the history stays where it was"""
    import fedflow.site.release as release

    real, heavy = release.ring_words, []

    def ring_words(job, order, vector):
        words = real(job, order, vector)

        def span(start, stop):
            out = words(start, stop)
            if job.index == 2 and order.sequence == 1:
                heavy.append(out[-1])
                out[-1] -= 1
            return out

        return span

    monkeypatch.setattr(release, "ring_words", ring_words)
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    before = runner.state
    runner.dispatch(1, 1, Kind.TRAIN)
    with pytest.raises(Exception, match="uniform") as caught:
        await runner.collect()
    assert caught.value.code == "wrong-weights"
    assert runner.state == before
    runner.dispatch(1, 2, Kind.TRAIN)
    result = await runner.collect()
    runner.update(result)
    assert len(heavy) == 1
    assert result.outcome.survivors == (0, 1, 2, 3)
    runner.close("completed", "")
    await room.ends()
