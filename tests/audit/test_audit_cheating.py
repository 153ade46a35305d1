"""Parties that cheat while the job runs, with valid signatures on everything they make."""

import dataclasses

import numpy as np
import pytest
from federation import Federation, payload, replace

from fedflow.audit.findings import EpsilonRow, Recorder
from fedflow.audit.ledgers import judge
from fedflow.audit.verify import verify_folder
from fedflow.exchange import layout
from fedflow.history import model_file
from fedflow.learning.groups import deal
from fedflow.learning.model_file import model_digest
from fedflow.privacy.events import ReleaseEvent
from fedflow.secagg.transcript import Transcript, sum_chunks
from fedflow.secagg.vectors import pack
from fedflow.wire.messages import Kind, Order
from fedflow.wire.sealed import peek, seal


def errors(folder):
    report = verify_folder(folder)
    found = {f.code for f in report.findings if f.severity == "error"}
    assert report.ok == (not found)
    return found


def test_a_site_that_does_not_charge_is_found(fresh):
    fresh.run(1, charge={0, 1, 2}, settle=False)
    assert errors(fresh.finish()) == {"uncharged-release"}


def test_a_site_that_charges_nothing_for_an_aborted_round_is_found(fresh):
    fresh.run(1)
    fresh.run(2, abort=True, charge={1, 2, 3})
    assert errors(fresh.finish()) == {"uncharged-release", "old-ledger"}


@pytest.mark.parametrize(
    "event",
    [
        ReleaseEvent("poisson-gaussian", 0.1, 4.0, 2),  # more noise than the plan
        ReleaseEvent("poisson-gaussian", 0.05, 2.0, 2),  # fewer people
        ReleaseEvent("poisson-gaussian", 0.1, 2.0, 1),  # fewer steps
        ReleaseEvent("gaussian", 1.0, 6.0, 1),
    ],
)
def test_a_site_that_charges_for_another_mechanism_is_found(fresh, event):
    fresh.run(1, event=event)
    assert errors(fresh.finish()) == {"wrong-event"}


def test_a_site_that_charges_training_to_the_held_out_people_is_found(fresh):
    fresh.run(1, account="demo/holdout")
    fresh.run(1, Kind.EVALUATE)
    assert errors(fresh.finish()) == {"wrong-account"}


def test_a_site_that_changes_the_account_is_found(fresh):
    fresh.run(1)
    fresh.run(2, account="demo/holdout")
    assert errors(fresh.finish()) == {"wrong-account"}


def test_a_settlement_that_contradicts_the_survivors_is_found(fresh):
    fresh.run(1, survivors=3)
    assert errors(fresh.finish()) == {"wrong-survivors"}


def wrong_model(fresh):
    fresh.vector = fresh.vector + np.float32(1e-6)
    data = model_file(fresh.vector, fresh.spec)
    fresh.state = dataclasses.replace(fresh.state, model=model_digest(data))
    fresh.exchange.put(layout.blob(fresh.job_id, fresh.state.model), data)


def test_a_coordinator_that_swaps_the_model_is_found_at_the_next_order(fresh):
    fresh.run(1)
    wrong_model(fresh)
    fresh.run(2)
    fresh.export()
    assert "broken-history" in errors(fresh.folder)


def test_a_coordinator_that_swaps_the_last_model_is_found_at_the_end(fresh):
    fresh.run(1)
    wrong_model(fresh)
    assert errors(fresh.finish()) == {"wrong-model"}


def test_a_coordinator_that_never_publishes_the_model_is_warned_of(fresh):
    fresh.run(1, publish_model=False)
    fresh.export()
    report = verify_folder(fresh.folder)
    assert {f.code for f in report.findings if f.severity == "warning"} == {"unpublished-model"}
    assert errors(fresh.finish()) == {"missing"}


def test_an_order_that_forgets_history_is_found(fresh):
    fresh.run(1)
    fresh.run(2, previous=bytes(32))
    assert "broken-history" in errors(fresh.finish())


def test_an_order_beyond_the_plan_is_found(fresh):
    fresh.run(9)
    assert "bad-order" in errors(fresh.finish())


NINE = [f"s{number}" for number in range(9)]
GROUPS = {"participation__groups": 3, "evaluation__every": 3}


@pytest.mark.parametrize("honest", [True, False])
def test_an_order_for_another_group_is_found_though_nobody_answered_it(tmp_path, honest):
    made = Federation(tmp_path, labels=NINE, rounds=3, **GROUPS)
    own, other, _ = deal(3, range(9), made.job.digest, 0)
    chosen = own if honest else tuple(sorted((own[0], *other[:2])))  # one among accomplices
    made.order(1, invited=chosen)
    found = {f.code for f in verify_folder(made.finish()).findings if f.severity == "error"}
    assert found == (set() if honest else {"wrong-group"})


def forge(fresh, sequence=1, **changes):
    """Change a transcript and sign it again, as only the coordinator can."""
    key = layout.transcript(fresh.job_id, sequence)
    true = peek(Transcript, payload(fresh.folder, key))
    replace(fresh.folder, key, seal(fresh.coordinator, dataclasses.replace(true, **changes)))


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("kind", [Kind.TRAIN, Kind.EVALUATE])
def test_an_announced_sum_that_is_not_the_sum_is_found(fresh, kind, published):
    outcome = fresh.run(1, kind)
    lie = outcome.sum.copy()
    lie[0] ^= np.uint32(1)
    forge(fresh, sum_chunks=sum_chunks(lie, 32))
    if published:
        replace(fresh.folder, layout.total(fresh.job_id, 1, 0), pack(lie, 32))
    fresh.export()
    assert "wrong-sum" in errors(fresh.folder)


def test_a_published_sum_that_was_never_announced_is_found(fresh):
    outcome = fresh.run(1)
    lie = outcome.sum.copy()
    lie[0] ^= np.uint32(1)
    replace(fresh.folder, layout.total(fresh.job_id, 1, 0), pack(lie, 32))
    fresh.finish()
    assert "other-sum" in errors(fresh.folder)


@pytest.mark.parametrize("value_range", [4.0, 16.0])
def test_an_order_with_another_range_than_its_history_produces_is_found(fresh, value_range):
    fresh.run(1)
    fresh.run(2, value_range=value_range)
    assert "broken-history" in errors(fresh.finish())


def test_a_range_that_follows_the_sums_is_recomputed(tmp_path):
    made = Federation(tmp_path / "job", secure_aggregation__value_range="auto")
    for number in (1, 2, 3):
        made.run(number)
    assert errors(made.finish()) == set()
    later = payload(made.folder, layout.order(made.job_id, 3))
    lie = dataclasses.replace(peek(Order, later), value_range=made.state.value_range * 2)
    replace(made.folder, layout.order(made.job_id, 3), seal(made.coordinator, lie))
    assert "broken-history" in errors(made.folder)


@pytest.mark.parametrize("bits", [16, 20, 24])
def test_sums_of_fewer_bits_verify(tmp_path, bits):
    made = Federation(tmp_path / "job", secure_aggregation__bits=bits)
    made.run(1)
    made.run(1, Kind.EVALUATE)
    made.run(2, drop={2})
    assert errors(made.finish()) == set()


def test_hybrid_rounds_with_a_dropped_site_verify(tmp_path):
    made = Federation(tmp_path / "job", secure_aggregation__suite="x25519-mlkem768")
    made.run(1, drop={1})
    made.run(2)
    assert errors(made.finish()) == set()


def test_a_site_that_weighs_itself_more_than_once_is_found(fresh, monkeypatch):
    """In a uniform mean the summed weight is known beforehand."""
    real = Federation._words

    def heavy(self, kind, site, order):
        words = real(self, kind, site, order)
        if site == 2:
            words[-1] *= np.uint32(2)
        return words

    monkeypatch.setattr(Federation, "_words", heavy)
    fresh.run(1, follow=False)
    fresh.export()
    assert errors(fresh.folder) == {"wrong-weights"}


def test_a_transcript_without_one_survivor_is_found(fresh):
    fresh.run(1)
    true = peek(Transcript, payload(fresh.folder, layout.transcript(fresh.job_id, 1)))
    forge(fresh, masked=true.masked[:-1])
    fresh.export()
    assert errors(fresh.folder)


def row(**changes):
    fields = {"site": "north", "account": "demo/train", "budget": 3.0, "delta": 1e-5,
              "filtered": 2.0, "rdp": 1.9, "pld": 1.7, "releases": 4}  # fmt: skip
    return EpsilonRow(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, []),
        ({"filtered": 3.2}, ["over-budget"]),
        ({"pld": 3.2, "filtered": 3.2}, ["over-budget"]),
        ({"pld": 2.5}, ["accountants-disagree"]),
        ({"pld": float("nan")}, ["over-budget", "accountants-disagree"]),
        ({"filtered": float("nan")}, ["over-budget", "accountants-disagree"]),
    ],
)
def test_epsilon_is_judged(changes, codes):
    recorder = Recorder()
    judge(row(**changes), "here", recorder)
    assert [f.code for f in recorder.findings] == codes
