"""Parties that cheat while the job runs, with valid signatures on everything they make."""

import dataclasses

import numpy as np
import pytest
from federation import payload, replace

from fedflow.audit.findings import EpsilonRow, Recorder
from fedflow.audit.ledgers import judge
from fedflow.audit.verify import verify_folder
from fedflow.exchange import layout
from fedflow.learning.model_file import encode_model, model_digest, unflatten
from fedflow.privacy.events import ReleaseEvent
from fedflow.secagg.messages import vector_hash
from fedflow.secagg.transcript import Transcript
from fedflow.wire.messages import Kind
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
    assert errors(fresh.finish()) == {"uncharged-release"}


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
    data = encode_model(unflatten(fresh.vector, fresh.spec))
    fresh.model = model_digest(data)
    fresh.exchange.put(layout.blob(fresh.job_id, fresh.model), data)


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


@pytest.mark.parametrize("kind", [Kind.TRAIN, Kind.EVALUATE])
def test_an_announced_sum_that_is_not_the_sum_is_found(fresh, kind):
    outcome = fresh.run(1, kind)
    lie = outcome.sum.copy()
    lie[0] += np.uint32(1)
    key = layout.transcript(fresh.job_id, 1)
    true = peek(Transcript, payload(fresh.folder, key))
    forged = dataclasses.replace(true, sum_hash=vector_hash(lie.tobytes()))
    replace(fresh.folder, key, seal(fresh.coordinator, forged))
    fresh.export()
    assert "wrong-sum" in errors(fresh.folder)


def test_a_transcript_without_one_survivor_is_found(fresh):
    fresh.run(1)
    key = layout.transcript(fresh.job_id, 1)
    true = peek(Transcript, payload(fresh.folder, key))
    forged = dataclasses.replace(true, masked=true.masked[:-1])
    replace(fresh.folder, key, seal(fresh.coordinator, forged))
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
