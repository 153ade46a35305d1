"""Evaluation, participation and budget audit: real rounds, real records, a real Prefect server."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from flow_room import coordinator_folder
from job_room import JOB, Room, drive, make_plan
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from fedflow.audit.findings import EpsilonRow
from fedflow.audit.verify import verify_folder
from fedflow.coordinator.job import write_roster
from fedflow.errors import Refusal
from fedflow.exchange import open_exchange
from fedflow.orchestration.audit_tables import audit_summary, left_in_words
from fedflow.orchestration.participation import job_rows, read_job, site_rows
from fedflow.privacy.plan_cost import plan_cost
from fedflow.site.admission import admit_order
from fedflow.wire.messages import Kind
from flows.analytics import analytics
from flows.budget_audit import budget_audit
from flows.evaluation import evaluation

SCORE_ONLY = make_plan(plan__rounds=0)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "exchange").mkdir()
    return tmp_path


def room_in(folder, **changes):
    return Room(folder, exchange=open_exchange(str(folder / "exchange")), **changes)


def hand_in(room, folder):
    """What an auditor pins, and the ledgers the sites hand in."""
    write_roster(folder / "audit" / "roster.json", room.job, room.authority.public)
    (folder / "audit" / "ledgers").mkdir(exist_ok=True)
    for label, site in room.sites.items():
        site.ledger.export(folder / "audit" / "ledgers" / f"{label}.jsonl")


async def artifacts_of(state):
    run = state.state_details.flow_run_id
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    async with get_client() as client:  # what artifacts show is under "data", which we scrub
        return {a.key: a.data for a in await client.read_artifacts(artifact_filter=mine)}


# ---- a plan that trains nothing


def test_scoring_alone_costs_the_held_out_persons_one_release():
    (row,) = plan_cost(SCORE_ONLY).rows
    once = plan_cost(make_plan(plan__rounds=1)).total
    assert row.train_epsilon == row.train_epsilon_pld == 0
    assert row.evaluate_epsilon == pytest.approx(once.evaluate_epsilon)


async def test_sites_score_once_and_never_train(folder):
    room = room_in(folder, plan=SCORE_ONLY)
    room.start()
    runner = room.runner()
    await runner.wait_for_sites(10)
    for kind, number in ((Kind.TRAIN, 1), (Kind.EVALUATE, 2)):
        _, sealed = room.make_order(
            kind=int(kind), round=number, dimension=SCORE_ONLY.vector_length(kind, room.dimension)
        )
        site = room.sites["alpha"]
        admitted = SimpleNamespace(
            coordinator=room.coordinator_identity.public,
            digest=room.manifest.digest(),
            plan=SCORE_ONLY,
        )
        with pytest.raises(Refusal, match="beyond the plan's"):
            admit_order(admitted, site.ledger, sealed, 1)
    runner.dispatch(1, 1, Kind.EVALUATE)
    result = await runner.collect()
    assert len(result.outcome.survivors) == 4
    assert runner.model_digest == room.manifest.initial_model
    runner.close("completed", "scored")
    await room.ends()
    for site in room.sites.values():
        assert [entry.purpose for entry in site.charges()] == ["evaluate"]
        assert list(site.ledger.accounts()) == ["visits/evaluate"], (
            "no account to train from is opened"
        )
        assert "train" not in site.trainer.tasks
    hand_in(room, folder)
    report = verify_folder(folder)
    assert report.ok, report.findings
    await room.stop()


async def test_the_flow_scores_and_says_so(connected, folder, monkeypatch):
    room = room_in(folder, plan=SCORE_ONLY)
    monkeypatch.setenv("FEDFLOW_COORDINATOR", str(coordinator_folder(room, folder)))
    room.start()
    state = await evaluation(JOB, sessions=False, return_state=True)
    await room.ends()
    assert state.is_completed(), state
    assert state.message.startswith("AUC ")
    assert "over 4 sites" in state.message
    await room.stop()


async def test_a_job_that_trains_is_not_evaluated(connected, folder, monkeypatch):
    room = room_in(folder)
    monkeypatch.setenv("FEDFLOW_COORDINATOR", str(coordinator_folder(room, folder)))
    state = await evaluation(JOB, sessions=False, return_state=True)
    assert state.name == "Refused"
    assert "federated_training" in state.message
    await room.stop()


# ---- participation


@pytest.fixture
async def finished(folder):
    """A job with a lost site and a refusal in it."""
    room = room_in(folder, plan=make_plan(plan__rounds=2, evaluation__every=2))
    room.sites["gamma"].trainer.fail["train"] = Refusal("policy", "not today")
    room.start("alpha", "beta", "delta", "gamma")
    await drive(room.runner())
    await room.ends()
    yield room
    await room.stop()


async def test_participation_counts_what_was_signed(finished):
    found = read_job(finished.folder_of_coordinator, JOB)
    (row,) = job_rows([found])
    rows = {r["site"]: r for r in site_rows([found])}
    assert row["sums"] == found.sums == 3  # two rounds and an evaluation
    assert rows["alpha"]["in the sum"] == 3
    assert rows["gamma"]["in the sum"] == found.took_part["gamma"] < 3
    assert row["seconds"] > 0
    assert rows["alpha"]["MB sent"] >= 0
    gone = rows["gamma"]["refused"] + rows["gamma"]["lost"] + rows["gamma"]["in the sum"]
    assert gone == 3, "a site is in the sum, was lost, or refused"
    # somebody else writes a refusal in a site's place: it is not that site's word
    before = found.refused.total()
    key = f"jobs/{JOB}/rounds/000001/up/decline/0"
    finished.exchange.put(key, b"forged")
    assert read_job(finished.folder_of_coordinator, JOB).refused.total() == before
    assert read_job(finished.folder_of_coordinator, "no-such-job") is None


async def test_analytics_publishes_tables_and_a_picture(connected, folder, finished, monkeypatch):
    monkeypatch.setenv("FEDFLOW_COORDINATOR", str(coordinator_folder(finished, folder)))
    state = await analytics(return_state=True)
    assert state.is_completed(), state
    found = await artifacts_of(state)
    kinds = {"participation-all-jobs", "participation-all-sites", "participation-all-chart"}
    assert set(found) == kinds
    assert [r["job"] for r in json.loads(found["participation-all-jobs"])] == [JOB]
    assert "(data:image/svg+xml;base64," in found["participation-all-chart"]


# ---- budget audit


def test_what_is_left_is_told_in_steps():
    def row(spent):
        return EpsilonRow("berlin", "visits/train", 2.0, 1e-5, spent, spent, spent, 3)

    words = [left_in_words(row(spent)) for spent in (0.1, 1.2, 1.7, 1.99, 2.0, 2.1)]
    assert words == [
        "more than half",
        "25 to 50 %",
        "10 to 25 %",
        "under 10 %",
        "nothing",
        "overspent",
    ]


async def test_an_honest_job_is_verified_without_a_figure(connected, folder, finished, monkeypatch):
    monkeypatch.setenv("FEDFLOW_COORDINATOR", str(coordinator_folder(finished, folder)))
    monkeypatch.setenv("FEDFLOW_AUDIT", str(folder / "audit"))
    hand_in(finished, folder)
    state = await budget_audit(JOB, return_state=True)
    assert state.name == "Verified", state
    found = await artifacts_of(state)
    assert found[f"audit-{JOB}"].startswith("# Verified")
    rows = json.loads(found[f"audit-{JOB}-budgets"])
    assert {r["site"] for r in rows} == set(finished.sites)
    assert (folder / "audit" / "report.html").exists()
    shown = json.dumps(found)
    for epsilon in verify_folder(folder).epsilons:
        assert f"{epsilon.filtered:.3f}"[:4] not in shown, "what was spent is not for the server"
    other = await budget_audit("another-job", return_state=True)
    assert other.name == "Findings"


async def test_a_ledger_that_hides_a_charge_is_red(connected, folder, finished, monkeypatch):
    monkeypatch.setenv("FEDFLOW_COORDINATOR", str(coordinator_folder(finished, folder)))
    monkeypatch.setenv("FEDFLOW_AUDIT", str(folder / "audit"))
    hand_in(finished, folder)
    path = folder / "audit" / "ledgers" / "alpha.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    state = await budget_audit(return_state=True)
    assert state.is_failed()
    assert state.name == "Findings"
    text = (await artifacts_of(state))["audit-all"]
    assert text.startswith("# Not verified")
    assert "**FAILED**" in text


async def test_nothing_to_audit_is_said_without_a_path(connected, folder, monkeypatch):
    monkeypatch.setenv("FEDFLOW_COORDINATOR", str(folder / "nowhere"))
    state = await budget_audit(return_state=True)
    assert state.name == "Refused"
    assert str(folder) not in state.message


def test_a_summary_names_the_job_that_is_missing(folder):
    report = SimpleNamespace(ok=True, own_keys=True, checks=(), jobs=(), findings=(), epsilons=())
    text = audit_summary(report, "gone", "")
    assert text.startswith("# Not verified")
    assert "gone" in text
