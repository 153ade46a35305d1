"""Budget, data problems, a failing trainer, and a crash at every durable step."""

import asyncio
import hashlib
import itertools
import types

import pytest
from job_room import JOB, PowerCut, Room, drive, make_plan

from fedflow.errors import Aborted, InputError, Refusal
from fedflow.exchange import layout
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.plan_cost import training_event
from fedflow.secagg.messages import Masked
from fedflow.secagg.vectors import chunk_hash
from fedflow.site.reasons import MAX_REASON, public_reason
from fedflow.site.remembered import Remembered
from fedflow.site.spool import Spool
from fedflow.site.trainer import Trained
from fedflow.site.training_client import TrainingFailed
from fedflow.wire.messages import Decline, Kind
from fedflow.wire.sealed import unseal

FAST = {"deadlines__round_seconds": 1.0, "deadlines__leg_seconds": 0.6}


@pytest.fixture
async def fast(tmp_path):
    made = Room(tmp_path, make_plan(plan__rounds=1, **FAST))
    yield made
    await made.stop()


async def one_order(room, number=1):
    runner = room.runner()
    await runner.wait_for_sites(5)
    current = runner.dispatch(number, 1, Kind.TRAIN)
    try:
        result = await runner.collect()
    except Aborted as error:
        result = error
    return runner, current, result


# ---- budget


def spend_all(site, event):
    for number in itertools.count():
        try:
            site.ledger.reserve(
                "visits/train",
                event,
                context=number.to_bytes(32, "big"),
                job="other-job",
                manifest=bytes(32),
                round=number + 1,
                attempt=1,
                purpose="train",
                release=b"x",
            )
        except Refusal:
            return


async def test_a_site_whose_budget_is_spent_refuses_signs_why_and_leaves(fast):
    site = fast.sites["beta"]
    site.start()
    while not fast.exchange.list(layout.hellos(JOB)):
        await asyncio.sleep(0.01)
    # Another job spends the rest meanwhile.
    spend_all(site, training_event(fast.plan))
    before = site.ledger.head()
    fast.start("alpha", "delta", "gamma")
    runner, current, result = await one_order(fast)
    assert result.outcome.survivors == (0, 2, 3)
    answer = current.answers[1].result()
    assert (answer.outcome, answer.code) == ("refused", "budget-exhausted")
    found = fast.exchange.get(layout.up(JOB, 1, "decline", 1))
    decline = unseal(Decline, found, site.identity.public)
    assert decline.reason == answer.reason
    assert any(c.isdigit() for c in decline.reason)  # the figures are in it
    end = await asyncio.wait_for(site.task, 5)
    assert (end.outcome, end.code) == ("refused", "budget-exhausted")
    assert site.ledger.head() == before
    assert fast.exchange.get(layout.up(JOB, 1, "masked", 1)) is None
    runner.close("completed", "")
    await fast.ends()
    # And it does not come back to the same job: refused at the door, again without an entry.
    again = await asyncio.wait_for(site.restart(), 5)
    assert (again.outcome, again.code) == ("refused", "budget-exhausted")
    assert site.ledger.head() == before


async def test_a_budget_too_small_for_one_round_is_refused_before_joining(tmp_path):
    room = Room(tmp_path, epsilon=0.05)
    end = await asyncio.wait_for(room.sites["alpha"].start(), 10)
    assert end.outcome == "refused"
    assert end.code in {"budget-exhausted", "bad-budget"}
    assert room.exchange.list(layout.hellos(JOB)) == []
    assert room.sites["alpha"].charges() == []
    await room.stop()


# ---- data and training problems

SECRET = "row 7, column income: 'seventy thousand' is not a number"


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (InputError(SECRET, where="/home/clinic/visits.csv:7"), "refused", "bad-input"),
        (Refusal("bad-input", SECRET), "refused", "bad-input"),
        (TrainingFailed("training-failed", SECRET), "error", "training-failed"),
        (TrainingFailed("training-died", SECRET), "error", "training-died"),
        (TrainingFailed("something-new", SECRET), "error", "something-new"),
        (Refusal("unheard-of", SECRET), "refused", "unheard-of"),
        (ValueError(SECRET), "error", "internal"),
        (MemoryError(SECRET), "error", "internal"),
    ],
)
async def test_a_data_problem_at_the_door_is_told_without_its_details(
    fast, caplog, error, outcome, code
):
    site = fast.sites["alpha"]
    site.trainer.fail["check"] = error
    with caplog.at_level("INFO", logger="fedflow"):
        end = await asyncio.wait_for(site.start(), 10)
    assert (end.outcome, end.code) == (outcome, code)
    assert end.reason
    for word in ("row 7", "income", "seventy", "clinic", "visits.csv"):
        assert word not in end.reason
    assert "seventy thousand" in caplog.text  # the operator can find the cause
    assert fast.exchange.list(layout.hellos(JOB)) == []


@pytest.mark.parametrize(
    "error",
    [
        InputError(SECRET, where="/home/clinic/visits.csv:7"),
        TrainingFailed("training-died", SECRET),
        Refusal("non-finite", SECRET),
    ],
)
async def test_a_problem_in_a_round_declines_that_round_without_details(fast, error):
    site = fast.sites["alpha"]
    site.trainer.fail["train"] = error
    fast.start()
    runner, current, result = await one_order(fast)
    assert result.outcome.survivors == (1, 2, 3)
    answer = current.answers[0].result()
    assert (answer.outcome, answer.code) == ("refused", error.code)
    everything = b"".join(fast.exchange.objects.values())
    for word in (b"row 7", b"income", b"seventy", b"clinic", b"visits.csv"):
        assert word not in everything
    assert site.charges() == []
    assert not site.task.done()  # the next round may go better
    runner.close("completed", "")
    await fast.ends()


@pytest.mark.parametrize("what", ["nan", "inf", "short", "long", "wrong-kind"])
async def test_a_vector_that_cannot_be_released_never_is(fast, what):
    import numpy as np

    site, d = fast.sites["alpha"], fast.dimension
    vector = np.ones(d, np.float32)
    if what in ("nan", "inf"):
        vector[3] = float(what)
    vector = {"short": vector[:-1], "long": np.ones(d + 1, np.float32)}.get(what, vector)
    if what == "wrong-kind":
        vector = vector.reshape(2, -1)

    async def give(task, **_):
        return Trained(np.empty(0, np.float32) if task == "check" else vector)

    site.trainer.run = give
    fast.start()
    runner, current, result = await one_order(fast)
    assert result.outcome.survivors == (1, 2, 3)
    assert current.answers[0].result().outcome == "refused"
    assert site.charges() == []
    runner.close("completed", "")
    await fast.ends()


def test_reasons_fit_where_they_go():
    code, reason = public_reason(Refusal("policy", "ε\n" * 2000))
    assert code == "policy"
    assert len(reason.encode()) <= MAX_REASON
    assert "\n" not in reason
    Decline(bytes(32), 0, code, reason).encode()


# ---- crashes


class Crash(PowerCut):
    pass


def crash_when(monkeypatch, site, step):
    """Lose power at one durable step of the first training round; returns what to undo."""
    when, _, what = step.partition(":")
    before = when.startswith("before")

    def crashing(real, ours=lambda *_: True):
        def wrapper(*args, **kwargs):
            mine = ours(*args)
            if mine and before:
                raise Crash
            out = real(*args, **kwargs)
            if mine:
                raise Crash
            return out

        return wrapper

    if when.endswith("-ledger"):
        monkeypatch.setattr(site.ledger, what, crashing(getattr(site.ledger, what)))
    elif when.endswith(("-spool", "-memory")):
        kind = Spool if when.endswith("-spool") else Remembered

        def ours(thing, *_):
            return site.path in thing.path.parents

        monkeypatch.setattr(kind, what, crashing(getattr(kind, what), ours))
    elif when.endswith("-put"):
        site.cut_at_put(f"rounds/000001/up/{what}/", after=not before)
    else:
        claim = crashing(site.ledger.facts().claim, lambda kind, *_: kind == what)
        monkeypatch.setattr(site.ledger, "facts", lambda: types.SimpleNamespace(claim=claim))


STEPS = [
    f"{when}-{what}"
    for what in [
        "claim:order",
        "put:advert",
        "put:shares",
        "spool:open",
        "spool:put",
        "claim:masked",
        "spool:finish",
        "ledger:reserve",
        "put:vector",
        "put:masked",
        "claim:survivors",
        "put:signed",
        "claim:unmask",
        "put:unmask",
        "ledger:settle",
        "spool:remove",
        "memory:keep_model",
        "memory:add",
    ]
    for when in ("before", "after")
]


@pytest.mark.parametrize("step", STEPS)
async def test_after_a_crash_anywhere_no_context_ever_has_two_vectors(tmp_path, monkeypatch, step):
    room = Room(
        tmp_path,
        make_plan(plan__rounds=2, deadlines__round_seconds=0.5, deadlines__leg_seconds=1.0),
    )
    site, masked = room.sites["beta"], []

    chunks = []

    def note(key, payload):
        if "/up/masked/1" in key:
            masked.append((key, payload))
        if "/up/vector/1/" in key:
            chunks.append((key, payload))

    crash_when(monkeypatch, site, step)
    keep = site.exchange.after_put

    def after(key, payload):
        note(key, payload)
        keep(key, payload)

    site.exchange.after_put = after
    room.start()
    runner = room.runner()
    driving = asyncio.create_task(drive(runner))
    with pytest.raises(PowerCut):
        await asyncio.wait_for(site.task, 10)
    monkeypatch.undo()
    first = site.charges()
    site.restart()
    site.exchange.after_put = note
    await asyncio.wait_for(driving, 20)
    await room.ends()

    keys = [key for key, _ in masked]
    assert len(keys) == len(set(keys))  # never a second vector for one order
    charges = site.charges()
    contexts = [e.context for e in charges]
    assert len(contexts) == len(set(contexts))
    assert charges[: len(first)] == first  # nothing is refunded
    # What left of a vector is what a paid header names, whether or not the header left too.
    assert len({key for key, _ in chunks}) == len(chunks)
    named = {
        digest for e in charges for digest in Masked.decode(site.ledger.release(e.context)).chunks
    }
    assert {chunk_hash(payload) for _, payload in chunks} <= named
    paid = {e.release_hash for e in charges}
    assert {hashlib.sha256(payload).digest() for _, payload in masked} <= paid
    ledger = Ledger.open(site.path / "ledger.sqlite", site.identity.public)  # verifies it all
    assert len([e for e in ledger.entries() if e.kind == "reserve"]) == len(charges)
    ledger.close()
    # What is left in the spool is paid for; it goes when its order is over.
    left = {path.name for path in (site.path / "spool").glob("*")}
    assert left <= {e.context.hex() for e in charges}
    # Whatever happened in round 1, it takes part in the rest of the job.
    assert "beta" in runner.records[1].sites
    await room.stop()


async def test_a_full_disk_at_the_ledger_releases_nothing(fast):
    site = fast.sites["beta"]

    def full(*_, **__):
        raise Refusal("ledger-unavailable", "the ledger /home/clinic cannot be used: disk is full")

    site.ledger.reserve = full
    fast.start()
    runner, current, result = await one_order(fast)
    assert result.outcome.survivors == (0, 2, 3)
    answer = current.answers[1].result()
    assert (answer.outcome, answer.code) == ("refused", "ledger-unavailable")
    assert "clinic" not in answer.reason
    assert fast.exchange.get(layout.up(JOB, 1, "masked", 1)) is None
    runner.close("completed", "")
    await fast.ends()
