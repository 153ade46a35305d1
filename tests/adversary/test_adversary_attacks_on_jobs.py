"""The attacks that the documentation lists, one named test for each:
models, code, repetition, sums. The other rows: test_adversary_attacks.py.

Where an attack is out of scope a test shows how far it goes. The crash matrix is in
tests/site/test_site_session.py, histories and vouchers in tests/site/test_site_history.py, the
Prefect API in tests/orchestration and tests/demo; what is here closes the rows those leave open.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import inspect

import numpy as np
import pytest
import source_scan
from aggregation_rounds import Round, context, make_client
from job_room import JOB, Room, drive, make_plan
from plans import make_plan as any_plan
from scipy import stats

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.crypto.kdf import pair_mask_key
from fedflow.crypto.masks import add_masks
from fedflow.errors import Aborted, Violation
from fedflow.exchange import layout
from fedflow.learning.strategy import next_model
from fedflow.privacy.events import ReleaseEvent
from fedflow.privacy.ledger import Ledger
from fedflow.secagg.messages import Advert, Consistency, Masked, Roster, Signed
from fedflow.wire.messages import Decline, Kind
from fedflow.wire.sealed import unseal

FALSE_ALARM = 1e-7
SITES = (0, 1, 2, 3, 4)
ROUND = {"colluders": 1, "minimum": 4}


def code_of(call) -> str:
    with pytest.raises(Violation) as caught:
        call()
    return caught.value.code


# ---- models


def test_model_inconsistency_gives_noise_and_aborts():
    """Pasquini, Francati, Ateniese, CCS 2022: other models to other sites defeat an ideal sum.
    Here the model is in every key. The roster is refused; were it not, shares would not open, masks
    would not cancel, and signatures on survivors would not count."""
    odd = context(model_hash=b"z" * 32).digest()
    even, client = make_client(0, SITES), make_client(1, SITES, round_ctx=odd)
    adverts = [Advert.decode(c.advertise()) for c in (even, client)]
    third = Advert.decode(make_client(2, SITES).advertise())
    roster = Roster((*adverts, third)).encode()
    assert code_of(lambda: even.on_roster(roster)) == "bad-signature"
    # The masks of a pair that has two models: what is left of them is noise.
    secret, size = bytes(32), 1 << 16
    left = np.full(size, 7, np.uint32)
    add_masks(left, [pair_mask_key(secret, context().digest(), 0, 1)], [1])
    add_masks(left, [pair_mask_key(secret, odd, 0, 1)], [-1])
    counts = np.bincount(left.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM
    # Leg 3: a signature of the other half is for another context.
    one, two = Round(SITES, **ROUND), Round(SITES, **ROUND, round_ctx=odd)
    survivors = one.masked()
    assert survivors == two.masked()
    mine = [Signed.decode(one.clients[s].on_survivors(survivors)) for s in (0, 1, 2)]
    theirs = [Signed.decode(two.clients[s].on_survivors(survivors)) for s in (3, 4)]
    mixed = Consistency(tuple(mine + theirs), ()).encode()
    assert code_of(lambda: one.clients[0].on_consistency(mixed)) == "bad-signature"


async def test_a_malicious_model_for_everybody_is_refused(tmp_path):
    """The same crafted model to all sites ("Robbing the Fed" and others): sites compute every model
    themselves, and decline an order for any other one. Nothing is charged, nothing leaves."""
    room = Room(tmp_path, make_plan(deadlines__round_seconds=1.0, deadlines__leg_seconds=1.0))
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    runner.dispatch(1, 1, Kind.TRAIN)
    runner.update(await runner.collect())
    previous = runner.state.head
    order, data = room.make_order(
        sequence=2,
        round=2,
        previous=previous,
        model=hashlib.sha256(b"crafted").digest(),
        value_range=runner.state.value_range,
    )
    room.place(data, 2)
    for site in room.sites.values():
        key = layout.up(JOB, 2, "decline", site.index)
        while (found := room.exchange.get(key)) is None:
            await asyncio.sleep(0.01)
        decline = unseal(Decline, found, site.identity.public)
        assert (decline.order, decline.code) == (order.digest(), "wrong-model")
        assert len(site.charges()) == 1
    await room.stop()


@pytest.mark.parametrize(("vouchers", "believed"), [(0, False), (1, False), (2, True), (4, True)])
def test_a_late_site_believes_more_sites_than_may_collude(vouchers, believed):
    """A site without the history takes part only when one honest site at least vouches."""
    clients = {
        s: make_client(s, SITES, colluders=1, minimum=4, vouches=0 < s <= vouchers) for s in SITES
    }
    roster = Roster(tuple(Advert.decode(c.advertise()) for c in clients.values())).encode()
    if believed:
        assert clients[0].on_roster(roster)
    else:
        assert code_of(lambda: clients[0].on_roster(roster)) == "unvouched-model"


# ---- code


def test_no_module_can_run_what_a_peer_sent():
    """Malicious orchestrator code: nothing in the package unpickles, evaluates or imports by a name
    from outside. (What Prefect itself might do is in test_orchestration_hostile.py.)"""
    banned = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
    calls = {"eval", "exec", "compile", "__import__", "torch.load", "np.load", "numpy.load"}
    importing = set()
    for path, tree in source_scan.modules():
        roots = {name.partition(".")[0] for name in source_scan.imports(tree)}
        assert not roots & banned, path
        called = source_scan.calls(tree)
        assert not called & calls, (path, called & calls)
        assert not {c for c in called if c.endswith((".loads", ".load")) and "pickle" in c}, path
        if {c for c in called if c.endswith(("import_module", "entry_points"))}:
            importing.add(path)
    # Workloads are found by name among what is installed, and the doctor lists those names without
    # importing anything; a task runner's name is one of a few written down in the code.
    known = {"learning/workload.py", "doctor/local.py", "orchestration/scale_out.py"}
    assert importing <= known | {"__init__.py", "cli/main.py"}, importing


# ---- differencing, retries, second releases


def open_ledger(folder) -> Ledger:
    ledger = Ledger.create(folder / "ledger", Identity.generate(), "alpha")
    ledger.open_account("a/train", epsilon=8.0, delta=1e-5, order=8.0)
    return ledger


def charge(ledger: Ledger, ctx: bytes, release: bytes):
    return ledger.reserve(
        "a/train",
        ReleaseEvent("gaussian", 1.0, 8.0, 1),
        context=ctx,
        job="job",
        manifest=bytes(32),
        round=1,
        attempt=1,
        purpose="train",
        release=release,
    )


def test_a_retry_is_the_same_bytes_or_another_charge(tmp_path):
    """Prefect retries, crashes and servers that ask again: one context pays for one release.
    Another attempt is another context and another charge."""
    ledger = open_ledger(tmp_path)
    first = charge(ledger, bytes(32), b"masked")
    assert charge(ledger, bytes(32), b"masked") == first
    spent = ledger.account_status("a/train").epsilon_spent
    assert code_of(lambda: charge(ledger, bytes(32), b"other noise")) == "already-reserved"
    assert ledger.account_status("a/train").epsilon_spent == spent
    assert ledger.release(bytes(32)) == b"masked"
    charge(ledger, b"\1" * 32, b"other noise")
    assert ledger.account_status("a/train").epsilon_spent > spent
    client = make_client(0, SITES)
    other = make_client(0, SITES, round_ctx=context(attempt=2).digest())
    assert client.advertise() != other.advertise()


async def test_differencing_over_attempts_is_charged_every_time(tmp_path):
    """Aborted attempts: the vectors left, so each is charged, and none is sent twice."""
    room = Room(
        tmp_path,
        make_plan(plan__rounds=1, deadlines__round_seconds=0.6, deadlines__leg_seconds=0.6),
    )
    lost = ("alpha", "beta")
    for label in lost:
        room.cut(label, "signed")
    room.start()
    runner = room.runner()
    with pytest.raises(Aborted):
        await drive(runner)
    for site in room.sites.values():
        sent = [key for key, _ in site.exchange.puts if "/up/masked/" in key]
        assert len(sent) == len(set(sent)) == len(site.charges())
        assert len({e.context for e in site.charges()}) == len(site.charges())
    assert all(len(room.sites[label].charges()) >= 1 for label in room.sites)
    await room.stop()


async def test_nothing_masked_is_in_the_exchange_without_its_ledger_entry(room):
    """I4 at a whole job: before a header or a chunk is put, the ledger on disk has paid for the
    header that names it."""
    seen = []

    def check(site):
        def before(key, payload):
            if "/up/masked/" not in key and "/up/vector/" not in key:
                return
            ledger = Ledger.open(site.path / "ledger.sqlite", site.identity.public)
            paid = [e for e in ledger.entries() if e.kind == "reserve"]
            last = ledger.release(paid[-1].context)
            if "/up/masked/" in key:
                assert payload == last
            else:
                from fedflow.secagg.vectors import chunk_hash

                index = int(key.rpartition("/")[2])
                assert Masked.decode(last).chunks[index] == chunk_hash(payload)
            ledger.close()
            seen.append(key)

        return before

    for site in room.sites.values():
        site.exchange.before_put = check(site)
    room.start()
    await drive(room.runner())
    assert len(seen) == 2 * 4 * 3  # header and one chunk, four sites, two rounds and a score


def test_prefect_never_repeats_a_step_of_a_round():
    """A task retry or a cached result would be a second release or a stale one."""
    from prefect.cache_policies import NO_CACHE

    from fedflow.orchestration import tasks

    found = [t for t in vars(tasks).values() if type(t).__name__ == "Task"]
    assert len(found) == 5
    for task in found:
        assert task.retries == 0
        assert task.persist_result is False
        assert task.cache_policy == NO_CACHE
        assert task.log_prints is False


def test_the_side_channel_through_the_prefect_api():
    """No step takes or gives anything but names and numbers, so a parameter, a result or a key of
    the API cannot carry a vector. What goes over the wire is tested with a real server in
    tests/orchestration and tests/demo."""
    from fedflow.orchestration import tasks

    for task in (t for t in vars(tasks).values() if type(t).__name__ == "Task"):
        signature = inspect.signature(task.fn)
        kinds = {str(p.annotation) for p in signature.parameters.values()}
        assert kinds <= {"str", "int"}, task.name
        assert str(signature.return_annotation) == "State[Any]"


# ---- values


def test_malformed_vectors_and_overflow():
    """A site clamps before it masks; a sum that no such sites can have sent makes no model."""
    plan = any_plan()
    coding = plan.coding(4, 8.0)
    wild = np.full(10, 1e30, np.float32)
    words = coding.encode(wild, 1.0, Csprng.from_os())
    total = np.zeros(11, np.uint32)
    for _ in range(4):
        total += words
    made = next_model(np.zeros(10, np.float32), total, 4, plan, 8.0, sites=4)
    assert np.allclose(made, 8.0, atol=1e-3)
    beyond = total.copy()
    beyond[3] = 1 << 31
    call = lambda: next_model(np.zeros(10, np.float32), beyond, 4, plan, 8.0, sites=4)  # noqa: E731
    assert code_of(call) in ("sum-out-of-range", "wrong-weights")


def test_poisoning_inside_the_range_is_a_known_limit():
    """Out of scope: a dishonest site may send any word of the ring, and nobody can tell which site
    did. Through its own encoder it moves the mean by its share of the range. With words of its own
    it can put the mean anywhere in the range, but never outside it."""
    plan, sites, rng = any_plan(), 4, Csprng.from_os()
    coding = plan.coding(sites, 8.0)
    honest = coding.encode(np.zeros(10, np.float32), 1.0, rng)
    poison = coding.encode(np.full(10, 1e9, np.float32), 1.0, rng)

    def model(words):
        total = honest + honest + honest + words
        return next_model(np.zeros(10, np.float32), total, 4, plan, 8.0, sites=sites)

    assert np.allclose(model(poison), 8.0 / sites, atol=1e-3)
    words = np.concatenate([rng.uint32(10), poison[10:]])
    with contextlib.suppress(Violation):  # one word in 2^29 is outside what four sites can send
        assert np.abs(model(words)).max() <= 8.0 + 1e-3
    words[:10] = (1 << 31) - 100
    assert np.allclose(model(words), 8.0, atol=1e-3)


def test_a_wrong_sum_announced_is_found_by_one_chunk():
    """Any site recomputes any chunk of the sum from the masked vectors and the opened secrets."""
    rounds = Round((0, 1, 2), dimension=200_000)
    outcome = rounds.run()
    transcript = outcome.transcript
    right = rounds.recomputation(transcript)
    assert np.array_equal(right.chunk(1, rounds.chunk_of), outcome.sum[65_536:131_072])
    chunks = list(transcript.sum_chunks)
    chunks[1] = bytes(32)
    lying = dataclasses.replace(transcript, sum_chunks=tuple(chunks))
    wrong = rounds.recomputation(lying)
    assert wrong.chunk(0, rounds.chunk_of) is not None
    assert code_of(lambda: wrong.chunk(1, rounds.chunk_of)) == "wrong-sum"


# ---- predictable masks


def test_predictable_masks():
    """MicroSecAgg's masks follow from long-lived keys. Here seeds and keys are fresh in every round
    and come from the operating system; seeded generators serve public values only."""
    for path, tree in source_scan.modules():
        seeded = {c for c in source_scan.calls(tree) if c.endswith(".from_seed")}
        assert not seeded or path in PUBLIC_SEEDS, path
    adverts = [
        Advert.decode(make_client(0, SITES, csprng=Csprng.from_os()).advertise()) for _ in range(20)
    ]
    assert len({key for advert in adverts for key in (advert.mask_key, advert.share_key)}) == 40


#: Modules that make public values from a public seed, or simulate a federation twice with one.
PUBLIC_SEEDS: set[str] = {
    "audit/empirical/white_box.py",
    "learning/groups.py",  # who is in which group: every site checks it
    "learning/methods/clusters.py",  # first centres
    "learning/methods/trees.py",  # where trees divide
    "learning/public_weights.py",  # first weights of a model
    "learning/sparse.py",  # the coordinates of a round: the same at every site
    "workloads/encoder.py",
    "workloads/tabular.py",
}
