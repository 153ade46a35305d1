"""What a site does with orders and manifests that are not what they should be."""

import asyncio
import dataclasses
import time

import pytest
from job_room import JOB, Room, drive, make_plan

from fedflow.coordinator.job import create_job
from fedflow.crypto.identity import Identity
from fedflow.errors import Refusal
from fedflow.exchange import MemoryExchange, layout
from fedflow.learning.model_file import model_digest
from fedflow.site.admission import admit_order
from fedflow.wire.messages import Decline, Kind, Manifest
from fedflow.wire.sealed import Sealed, peek, seal, unseal


async def answer_to(room, data, sequence=1, label="alpha"):
    """The Decline of one site to an order placed as bytes; its charges must stay none."""
    site = room.sites[label]
    if site.task is None:
        site.start()
        while not room.exchange.list(layout.hellos(JOB)):
            await asyncio.sleep(0.01)
    room.place(data, sequence)
    key = layout.up(JOB, sequence, "decline", site.index)
    until = time.monotonic() + 5
    while (found := room.exchange.get(key)) is None:
        assert time.monotonic() < until, "the site did not answer"
        assert not site.task.done(), site.task.result()
        await asyncio.sleep(0.01)
    assert site.charges() == []
    return unseal(Decline, found, site.identity.public)


async def test_an_order_by_another_key_is_declined(room):
    order, data = room.make_order(identity=Identity.generate())
    decline = await answer_to(room, data)
    assert (decline.order, decline.site) == (order.digest(), 0)
    assert decline.code == "bad-signature"


async def test_a_tampered_order_is_declined(room):
    _, data = room.make_order()
    sealed = Sealed.decode(data)
    body = bytearray(sealed.body)
    body[-5] ^= 1  # the deadline, before an empty list
    decline = await answer_to(room, Sealed(bytes(body), sealed.signature).encode())
    assert decline.code == "bad-signature"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"manifest": bytes(32)}, "foreign-order"),
        ({"sequence": 2}, "replayed-order"),
        ({"round": 3}, "policy"),
        ({"dimension": 7}, "bad-order"),
        ({"kind": int(Kind.EVALUATE)}, "bad-order"),  # with the training dimension
        ({"deadline": 1}, "order-expired"),
        ({"deadline": int((time.time() + 9999) * 1000)}, "policy"),
        ({"deadline": 2**64 - 1}, "policy"),
        ({"model": bytes(32)}, "wrong-model"),
        ({"value_range": 16.0}, "wrong-model"),
        ({"round": 2, "model": bytes(32)}, "wrong-model"),
        ({"round": 2, "value_range": 4.0}, "wrong-model"),
    ],
)
async def test_an_order_outside_the_job_is_declined_by_name(room, changes, code):
    _, data = room.make_order(**changes)
    assert (await answer_to(room, data)).code == code


async def test_the_same_order_placed_again_later_is_a_replay(room):
    room.start()
    runner = await drive(room.runner(), close=False)
    for site in room.sites.values():
        assert len(site.charges()) == 3
    first = room.exchange.get(layout.order(JOB, 1))
    room.exchange.put(layout.order(JOB, 4), first)
    key = layout.up(JOB, 4, "decline", 0)
    while (found := room.exchange.get(key)) is None:
        await asyncio.sleep(0.01)
    decline = unseal(Decline, found, room.sites["alpha"].identity.public)
    assert decline.code == "replayed-order"
    assert decline.reason == "order 1 was placed as order 4"
    assert all(len(site.charges()) == 3 for site in room.sites.values())
    runner.close("completed", "")
    await room.ends()


async def test_the_same_order_after_a_restart_of_the_site_is_never_answered_twice(room):
    """The order is still open, its roster and all: the restarted site must not mask again."""
    site = room.cut("alpha", "masked")
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    runner.dispatch(1, 1, Kind.TRAIN)
    await asyncio.gather(site.task, return_exceptions=True)
    assert len(site.charges()) == 1
    site.restart()
    result = await runner.collect()
    assert 0 not in result.outcome.survivors
    while (found := room.exchange.get(layout.up(JOB, 1, "decline", 0))) is None:
        await asyncio.sleep(0.01)
    assert unseal(Decline, found, site.identity.public).code == "already-claimed"
    assert len(site.charges()) == 1
    assert room.exchange.get(layout.up(JOB, 1, "masked", 0)) is None
    runner.close("completed", "")
    await room.ends()


async def test_another_order_under_the_same_number_after_a_restart_is_refused(tmp_path):
    """An exchange that is not put-once may swap the order; the site remembers which it took."""
    room = Room(tmp_path)
    site = room.cut("alpha", "masked")
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    runner.dispatch(1, 1, Kind.TRAIN)
    await asyncio.gather(site.task, return_exceptions=True)
    await runner.collect()
    for key in [k for k in room.exchange.objects if "/rounds/" in k]:
        del room.exchange.objects[key]
    _, other = room.make_order(attempt=2)
    site.restart()
    room.place(other)
    while (found := room.exchange.get(layout.up(JOB, 1, "decline", 0))) is None:
        await asyncio.sleep(0.01)
    assert unseal(Decline, found, site.identity.public).code == "already-claimed"
    assert len(site.charges()) == 1
    await room.stop()


@pytest.mark.parametrize("junk", [b"", b"\0", b"x" * 400, bytes(70_000)])
async def test_an_order_of_garbage_costs_that_order_only(room, junk):
    room.place(junk, 1)
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    runner._sequence = 1  # the coordinator would look first; here it just goes on
    runner.dispatch(1, 1, Kind.TRAIN)
    result = await runner.collect()
    assert len(result.outcome.survivors) == 4
    runner.close("completed", "")
    await room.ends()


async def put_down(room, leg, change, label="alpha", sequence=1):
    """Change what one site reads of one leg; returns its Decline."""
    site = room.sites[label]

    def hook(key, data):
        if data is not None and f"/down/{leg}/" in key:
            return change(data)
        return data

    site.exchange.on_get = hook
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    runner.dispatch(1, 1, Kind.TRAIN)
    result = await runner.collect()
    runner.close("completed", "")
    await room.ends()
    found = room.exchange.get(layout.up(JOB, sequence, "decline", site.index))
    return result, unseal(Decline, found, site.identity.public)


def flip(at):
    def change(data):
        out = bytearray(data)
        out[at] ^= 1
        return bytes(out)

    return change


@pytest.mark.parametrize(
    "change", [flip(-100), flip(3), flip(0), lambda d: d[:-1], lambda d: d + b"\0", lambda d: b""]
)
@pytest.mark.parametrize("leg", ["roster", "delivery"])
async def test_a_tampered_roster_or_delivery_is_declined_and_nothing_charged(room, leg, change):
    result, decline = await put_down(room, leg, change)
    assert result.outcome.survivors == (1, 2, 3)
    assert result.answers[0].outcome == "refused"
    assert decline.reason
    assert room.sites["alpha"].charges() == []


@pytest.mark.parametrize("leg", ["survivors", "consistency"])
async def test_a_tampered_late_leg_ends_the_round_for_that_site_only(room, leg):
    result, decline = await put_down(room, leg, flip(-1))
    assert decline.reason
    assert 0 in result.outcome.survivors  # its vector was in before
    assert len(room.sites["alpha"].charges()) == 1


async def test_a_delivery_meant_for_another_site_is_refused(room):
    def swap(data):
        return room.exchange.get(layout.down(JOB, 1, "delivery", 2)) or data

    _, decline = await put_down(room, "delivery", swap)
    assert decline.code == "wrong-recipient"
    assert room.sites["alpha"].charges() == []


@pytest.mark.parametrize("how", ["tampered", "truncated", "missing", "short-but-signed"])
async def test_a_bad_model_file_is_refused_by_every_site(tmp_path, how):
    room = Room(tmp_path, make_plan(deadlines__leg_seconds=0.5, deadlines__round_seconds=0.5))
    key = layout.blob(JOB, room.manifest.initial_model)
    runner = room.runner()
    if how == "tampered":
        room.exchange.objects[key] = flip(-1)(room.model)
    elif how == "truncated":
        room.exchange.objects[key] = room.model[:-5]
    elif how == "missing":
        del room.exchange.objects[key]
    room.start()
    await runner.wait_for_sites(5)
    current = runner.dispatch(1, 1, Kind.TRAIN)
    if how == "short-but-signed":
        await runner.collect()
        short = model_digest(room.model[:-5])
        runner._state = dataclasses.replace(runner._state, model=short)
        room.exchange.put(layout.blob(JOB, short), room.model[:-5])
        current = runner.dispatch(2, 1, Kind.TRAIN)
    with pytest.raises(Exception, match="3"):
        await runner.collect()
    answers = [f.result() for f in current.answers.values()]
    if how == "missing":
        assert {a.outcome for a in answers} == {"dropped"}
    else:
        assert {a.outcome for a in answers} == {"refused"}
        code = "wrong-model" if how == "short-but-signed" else "wrong-digest"
        assert {a.code for a in answers} == {code}
    spent = 1 if how == "short-but-signed" else 0
    assert all(len(s.charges()) == spent for s in room.sites.values())
    runner.close("aborted", "")
    assert {e.outcome for e in (await room.ends()).values()} == {"completed"}
    await room.stop()


# ---- manifests


async def refused(room, label="alpha", **opening):
    end = await asyncio.wait_for(room.sites[label].start(**opening), 10)
    assert room.sites[label].charges() == []
    countersigned = room.exchange.list(f"jobs/{JOB}/countersign")
    assert countersigned == []
    assert room.sites[label].trainer.tasks == []  # no data was read
    return end


def reseal(room, identity=None, **changes):
    """Put a changed manifest in place of the real one."""
    fields = {f.name: getattr(room.manifest, f.name) for f in dataclasses.fields(Manifest)}
    manifest = Manifest(**(fields | changes))
    room.exchange.objects[layout.manifest(JOB)] = seal(identity or room.authority, manifest)
    return manifest


async def test_a_manifest_by_another_authority(room):
    reseal(room, Identity.generate())
    end = await refused(room)
    assert (end.outcome, end.code) == ("refused", "bad-signature")


async def test_a_manifest_other_than_the_one_announced(room):
    end = await refused(room, manifest=bytes(32))
    assert (end.outcome, end.code) == ("refused", "manifest-mismatch")
    reseal(room, job="other-job")
    assert (await refused(room)).code == "manifest-mismatch"


async def test_a_coordinator_the_operator_does_not_know(room):
    reseal(room, coordinator=Identity.generate().public.raw)
    assert (await refused(room)).code == "unknown-coordinator"


async def test_a_roster_without_this_site(room):
    reseal(room, roster=room.manifest.roster[1:])
    end = await refused(room)
    assert (end.outcome, end.code) == ("refused", "not-in-roster")
    assert end.reason == "site alpha is not in the job's roster"


@pytest.mark.parametrize(
    "changes",
    [
        {"created": 1, "not_after": 2},
        {"created": int(time.time()) + 3600, "not_after": int(time.time()) + 7200},
    ],
)
async def test_a_manifest_outside_its_time(room, changes):
    reseal(room, **changes)
    assert (await refused(room)).code == "manifest-expired"


@pytest.mark.parametrize("changes", [{"minimum": 2}, {"colluders": 1}])
async def test_a_manifest_that_contradicts_its_plan(room, changes):
    reseal(room, **changes)
    assert (await refused(room)).code == "bad-manifest"


@pytest.mark.parametrize("value_range", [4.0, 1e300, 1e-300])
async def test_a_manifest_whose_range_is_not_the_plans(room, value_range):
    reseal(room, value_range=value_range)
    assert (await refused(room)).code == "bad-manifest"


@pytest.mark.parametrize("value_range", [1e300, 1e-300])
async def test_an_automatic_range_that_no_quantiser_holds(tmp_path, value_range):
    room = Room(tmp_path, make_plan(secure_aggregation__value_range="auto"))
    reseal(room, value_range=value_range)
    assert (await refused(room)).code == "bad-manifest"
    await room.stop()


async def test_a_manifest_without_a_readable_plan(room):
    reseal(room, plan=b"{}")
    assert (await refused(room)).code == "bad-plan"
    reseal(room, plan=room.manifest.plan + b" ")
    assert (await refused(room)).code == "bad-plan"


async def test_a_plan_beyond_the_policy_names_every_broken_bound(tmp_path):
    loud = make_plan(privacy__clipping_norm=5.0, privacy__noise_multiplier=0.5)
    room = Room(tmp_path, loud, policy_plan=make_plan())
    end = await refused(room)
    assert (end.outcome, end.code) == ("refused", "policy")
    assert "privacy.clipping_norm is 5, at most 1 is allowed" in end.reason
    assert "privacy.noise_multiplier is 0.5, at least 2 is required" in end.reason
    assert room.sites["alpha"].ledger.accounts() == ()
    await room.stop()


async def test_no_authority_in_the_policy_trusts_nobody(room):
    path = room.sites["alpha"].path / "policy.toml"
    path.write_text(path.read_text().replace(room.authority.public.hex(), ""))
    assert (await refused(room)).code == "unknown-authority"


async def test_two_manifests_under_one_job_id_bind_the_site_once(room):
    """Also across a restart, and though the authority signed both."""
    site = room.sites["alpha"]
    site.start()
    while not room.exchange.list(f"jobs/{JOB}/countersign"):
        await asyncio.sleep(0.01)
    site.task.cancel()
    await site.task
    second = reseal(room, not_after=room.manifest.not_after + 1)
    room.exchange.objects.pop(layout.countersign(JOB, 0))
    end = await asyncio.wait_for(site.restart(), 10)
    assert (end.outcome, end.code) == ("refused", "already-claimed")
    assert room.exchange.get(layout.countersign(JOB, 0)) is None
    assert second.digest() != room.manifest.digest()


async def test_the_same_manifest_again_is_fine(room):
    site = room.sites["alpha"]
    for _ in range(2):
        site.start()
        count = len(room.exchange.list(layout.hellos(JOB)))
        while len(room.exchange.list(layout.hellos(JOB))) == count:
            await asyncio.sleep(0.01)
        site.task.cancel()
        assert (await site.task).outcome == "cancelled"
    assert len(room.exchange.list(layout.hellos(JOB))) == 4  # each start, and each farewell


async def test_a_job_that_is_over_by_the_clock_ends_the_session(tmp_path):
    room = Room(tmp_path, valid_seconds=1)
    end = await asyncio.wait_for(room.sites["alpha"].start(), 10)
    assert (end.outcome, end.code) == ("completed", "manifest-expired")
    await room.stop()


async def test_an_end_by_somebody_else_ends_nothing(room):
    from fedflow.wire.messages import JobEnd

    fake = JobEnd(room.manifest.digest(), 0, "completed", "", bytes(32))
    room.exchange.put(layout.end(JOB), seal(Identity.generate(), fake))
    task = room.sites["alpha"].start()
    await asyncio.sleep(0.3)
    assert not task.done()


async def test_a_manifest_that_never_comes(tmp_path, monkeypatch):
    import fedflow.site.session as session_module

    room = Room(tmp_path, exchange=MemoryExchange())
    monkeypatch.setattr(session_module, "MANIFEST_SECONDS", 0.1)
    end = await asyncio.wait_for(room.sites["alpha"].start("no-such-job"), 5)
    assert (end.outcome, end.code) == ("error", "no-manifest")
    await room.stop()


async def test_a_truncated_manifest_is_refused(room):
    data = room.exchange.get(layout.manifest(JOB))
    room.exchange.objects[layout.manifest(JOB)] = data[:-10]
    assert (await refused(room)).code == "truncated"


async def test_the_budget_the_ledger_opened_is_never_rewritten_by_the_policy(room):
    site = room.sites["alpha"]
    site.start()
    while not room.exchange.list(layout.hellos(JOB)):
        await asyncio.sleep(0.01)
    site.task.cancel()
    await site.task
    path = site.path / "policy.toml"
    path.write_text(path.read_text().replace("epsilon = 8.0", "epsilon = 80.0"))
    end = await asyncio.wait_for(site.restart(), 10)
    assert (end.outcome, end.code) == ("refused", "budget-mismatch")
    assert "ε 8" in end.reason


# ---- declines the coordinator must not believe


async def test_a_refusal_put_by_somebody_else_does_not_cost_a_site_its_place(room):
    """Unsigned junk, another site's refusal, and this site's own refusal of an older order."""
    order, _ = room.make_order()
    alpha, beta = room.sites["alpha"].identity, room.sites["beta"].identity
    forged = seal(beta, Decline(order.digest(), 0, "policy", "forged"))
    old = seal(alpha, Decline(bytes(32), 0, "policy", "an older order"))
    for site, data in enumerate([forged, b"junk", old]):
        room.exchange.put(layout.up(JOB, 1, "decline", site), data)
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    runner.dispatch(1, 1, Kind.TRAIN)
    result = await runner.collect()
    assert result.outcome.survivors == (0, 1, 2, 3)
    runner.close("completed", "")
    await room.ends()


async def test_a_copy_of_an_earlier_message_is_not_an_answer_to_a_later_leg(room):
    """A site's own advert in place of its shares: that site is dropped, by name."""
    site = room.sites["alpha"]
    site.task = None

    def stop_at_shares(key, payload):
        if "/up/shares/" in key:
            advert = room.exchange.get(layout.up(JOB, 1, "advert", 0))
            room.exchange.put(key, advert)
            raise OSError("the place is taken")

    site.exchange.before_put = stop_at_shares
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(5)
    current = runner.dispatch(1, 1, Kind.TRAIN)
    result = await runner.collect()
    assert result.outcome.survivors == (1, 2, 3)
    answer = current.answers[0].result()
    assert (answer.outcome, answer.code) == ("dropped", "wrong-place")
    runner.close("completed", "")


async def test_a_second_job_under_a_taken_id_is_refused(room):
    with pytest.raises(Refusal, match="another id") as caught:
        create_job(
            room.exchange,
            job=JOB,
            plan=make_plan(plan__rounds=1),
            sites={label: s.identity.public for label, s in room.sites.items()},
            coordinator=room.coordinator_identity.public,
            authority=room.authority,
            initial_model=room.model,
            spec=room.spec,
        )
    assert caught.value.code == "job-taken"


async def test_admitting_an_order_writes_nothing(room):
    from fedflow.site.admission import admit_manifest

    site = room.sites["alpha"]
    data = room.exchange.get(layout.manifest(JOB))
    job = admit_manifest(site.folder(), data, JOB, None)
    assert peek(Manifest, data).digest() == job.digest
    _, order = room.make_order()
    before = site.ledger.head()
    with pytest.raises(Refusal):  # no account yet: not even that is opened by an order
        admit_order(job, site.ledger, order, 1)
    assert site.ledger.head() == before
