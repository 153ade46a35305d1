"""Jobs of a federation: made, published, run and refused, from the first command to the audit."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
from federation_walk import EXCHANGE
from job_room import FakeTrainer, drive

from fedflow.audit.roster import load_roster
from fedflow.audit.verify import verify_folder
from fedflow.coordinator import left_out
from fedflow.coordinator.job import load_job, opened
from fedflow.coordinator.runner import JobRunner
from fedflow.coordinator.settings import open_coordinator
from fedflow.crypto.identity import Identity
from fedflow.errors import Refusal, Violation
from fedflow.exchange import layout
from fedflow.federation import authority as authority_folder
from fedflow.federation.scoring import final_model
from fedflow.learning.plan import load_plan
from fedflow.privacy.ledger import Ledger
from fedflow.site.admission import admit_manifest
from fedflow.site.config import open_site
from fedflow.site.hearing import hear_of_members
from fedflow.site.policy import template
from fedflow.site.round import SiteServices
from fedflow.site.session import Session
from fedflow.wire.messages import JobEnd, Manifest
from fedflow.wire.sealed import peek, seal

SITES = ("alpha", "beta", "delta", "gamma")
CHANGES = {
    "rounds = 16": "rounds = 2",
    "minimum = 4": "minimum = 3",
    "colluders = 1 ": "colluders = 0 ",
    "local_steps = 50": "local_steps = 2",
    "noise_multiplier = 1.54": "noise_multiplier = 2.0",
}


@pytest.fixture
def plan(trial, request):
    text = (request.config.rootpath / "flows/plans/randhie.toml").read_text()
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    path = trial.folder / "plan.toml"
    path.write_text(text)
    proposed = load_plan(path)
    for label in SITES:  # what an operator edits by hand
        site = open_site(trial.site(label))
        policy = template(
            authority=site.policy.trust.authority,
            coordinators=site.policy.trust.coordinators,
            workload="randhie",
            dataset="visits",
            path="visits.csv",
            epsilon=8.0,
            plan=proposed,
        )
        (site.path / "policy.toml").write_text(policy)
    return path


def create(trial, plan, job="spring-1", *options, status=0):
    return trial(
        *("job", "create", trial.federation, "--plan", plan, "--job", job, *options), status=status
    )


@contextlib.contextmanager
def sessions(trial, job, labels):
    """Sessions of real site folders, without processes and without training."""
    made = []
    manifest = load_job(trial.exchange, job, trial.authority.identity.public).manifest
    for number, label in enumerate(labels):
        site = open_site(trial.site(label))
        ledger = Ledger.open(site.ledger_path, site.identity)
        services = SiteServices(
            identity=site.identity,
            exchange=trial.exchange,
            ledger=ledger,
            facts=ledger.facts(),
            trainer=FakeTrainer(number, manifest.dimension),
            poll_seconds=0.01,
            folder=site.path,
        )

        async def progress(number, phase):
            pass

        made.append((ledger, Session(site, services, job, None, progress)))
    try:
        yield [session for _, session in made]
    finally:
        for ledger, _ in made:
            ledger.close()


def run(trial, job, labels):
    """The job to its end; the runner and how every site's session ended."""

    async def both():
        tasks = [asyncio.create_task(session.run()) for session in started]
        runner = JobRunner(open_coordinator(trial.coordinator), job)
        try:
            await drive(runner, join_seconds=20.0)
            return runner, [await asyncio.wait_for(task, 30) for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with sessions(trial, job, labels) as started:
        return asyncio.run(both())


def export(trial, job):
    """What an auditor is given."""
    audit = trial.folder / "audit"
    (audit / "ledgers").mkdir(parents=True, exist_ok=True)
    for label in SITES:
        trial("ledger", "export", trial.site(label), audit / "ledgers" / f"{label}.jsonl")
    made = trial.federation / "jobs" / job / "roster.json"
    (audit / "roster.json").write_bytes(made.read_bytes())
    return made


@pytest.mark.slow
def test_from_the_first_command_to_the_audit_with_a_key_replaced_in_between(trial, plan):
    create(trial, plan)
    runner, ends = run(trial, "spring-1", SITES)
    assert {end.outcome for end in ends} == {"completed"}
    assert [record.sites for record in runner.records] == [list(SITES)] * 2
    (shown,) = trial.facts("job", "list", "--coordinator", trial.coordinator)
    assert (shown["state"], shown["rounds"], shown["planned"]) == ("completed", 2, 2)
    assert sorted(shown["joined"]) == list(SITES)
    trial("job", "show", "spring-1", "--coordinator", trial.coordinator)
    assert "completed" in trial.out

    path = trial.folder / "alpha.rotation"
    trial("site", "rotate-key", trial.site("alpha"), "-o", path)
    new = Identity.load(trial.site("alpha") / "identity.next.pem").public
    trial.approve(path, new.fingerprint())
    trial("site", "join", trial.site("alpha"), "--exchange", EXCHANGE)
    create(trial, plan, "spring-2")
    _, ends = run(trial, "spring-2", SITES)
    assert {end.outcome for end in ends} == {"completed"}
    site = open_site(trial.site("alpha"))
    ledger = Ledger.open(site.ledger_path, site.identity)
    assert {entry.job for entry in ledger.entries() if entry.kind == "reserve"} == {
        *("spring-1", "spring-2")
    }
    ledger.close()
    report = verify_folder(trial.folder, roster=export(trial, "spring-2"))
    assert [f for f in report.findings if f.severity == "error"] == []
    assert {row.job for row in report.jobs} == {"spring-1", "spring-2"}


@pytest.mark.slow
def test_a_site_that_is_revoked_during_a_job_is_asked_no_more(trial, plan, monkeypatch):
    create(trial, plan)
    monkeypatch.setattr(left_out, "LOOK_SECONDS", 0.0)
    real = JobRunner.checkpoint

    def then_revoke(runner):
        real(runner)
        member = trial.authority.roster.member(
            Identity.load(trial.site("beta") / "identity.pem").public.raw
        )
        if len(runner.records) == 1 and not member.revoked:
            trial("federation", "revoke", trial.federation, "beta")

    monkeypatch.setattr(JobRunner, "checkpoint", then_revoke)
    runner, _ = run(trial, "spring-1", SITES)
    assert runner.records[0].sites == list(SITES)
    assert runner.records[1].sites == ["alpha", "delta", "gamma"]


def test_a_job_never_changes(trial, plan):
    create(trial, plan)
    first = trial.exchange.get(layout.manifest("spring-1"))
    plan.write_text(plan.read_text().replace("rounds = 2", "rounds = 3"))
    said = create(trial, plan, status=2)
    assert "hence a new job" in said
    # even an authority that forgot what it signed finds the name taken
    (trial.federation / "jobs" / "spring-1").rename(trial.folder / "forgotten")
    said = create(trial, plan, status=2)
    assert "a job never changes" in said
    assert trial.exchange.get(layout.manifest("spring-1")) == first


def test_only_active_members_are_in_a_job(trial, plan):
    assert "no active site" in create(trial, plan, "a", "--sites", "alpha,omega", status=2)
    assert "named twice" in create(trial, plan, "a", "--sites", "alpha,alpha,beta", status=2)
    assert "no active coordinator x" in create(trial, plan, "a", "--coordinator", "x", status=2)
    assert "minimum is 3" in create(trial, plan, "a", "--sites", "alpha,beta", status=2)
    assert "cannot be a job id" in create(trial, plan, "A/..", status=2)
    trial("federation", "revoke", trial.federation, "beta")
    assert "no active site" in create(trial, plan, "a", "--sites", "alpha,beta,delta", status=2)
    create(trial, plan, "a")
    manifest = peek(Manifest, trial.exchange.get(layout.manifest("a")))
    assert [entry.label for entry in manifest.roster] == ["alpha", "delta", "gamma"]
    assert list((trial.federation / "jobs").iterdir()) == [trial.federation / "jobs" / "a"]


def test_a_job_is_carried_to_the_coordinator_by_hand(trial, plan):
    carried = trial.folder / "carried"
    create(trial, plan, "spring-1", "--offline", carried)
    assert trial.exchange.list("jobs") == []
    trial("job", "publish", carried, "--coordinator", trial.coordinator)
    trial("job", "publish", carried, "--coordinator", trial.coordinator)  # again: nothing changes
    (shown,) = trial.facts("job", "list", "--coordinator", trial.coordinator)
    assert shown["state"] == "waiting"
    for name in ("model", "manifest"):
        data = (carried / name).read_bytes()
        (carried / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        trial("job", "publish", carried, "--coordinator", trial.coordinator, status=2)
        (carried / name).write_bytes(data)
    trial("job", "publish", carried, status=2)


def admit(trial, label, data, job="spring-1"):
    site = open_site(trial.site(label))
    asyncio.run(hear_of_members(site, trial.exchange))
    return admit_manifest(site, data, job, None)


def test_a_site_refuses_a_job_with_a_key_that_was_revoked_before_it(trial, plan, monkeypatch):
    create(trial, plan)
    data = trial.exchange.get(layout.manifest("spring-1"))
    admit(trial, "alpha", data)
    made = peek(Manifest, data).created
    monkeypatch.setattr(authority_folder, "_now", lambda: made + 5)
    trial("federation", "revoke", trial.federation, "gamma")
    admit(trial, "alpha", data)  # revoked after the job was made: the coordinator leaves it out
    monkeypatch.setattr(authority_folder, "_now", lambda: made)
    trial("federation", "revoke", trial.federation, "beta")
    with pytest.raises(Refusal, match="site beta was revoked") as caught:
        admit(trial, "alpha", data)
    assert caught.value.code == "revoked-key"


def test_a_site_refuses_a_job_of_a_revoked_coordinator(trial, plan):
    create(trial, plan)
    data = trial.exchange.get(layout.manifest("spring-1"))
    authority = trial.authority
    made = peek(Manifest, data).created
    authority.sign(tuple(replace(m, revoked=made) if m.role == 2 else m for m in authority.members))
    authority.publish()
    with pytest.raises(Refusal, match="the coordinator was revoked"):
        admit(trial, "alpha", data)


def test_a_site_refuses_a_job_with_an_expired_member(trial, plan):
    create(trial, plan)
    data = trial.exchange.get(layout.manifest("spring-1"))
    authority, made = trial.authority, peek(Manifest, data).created
    authority.sign(
        tuple(replace(m, not_after=made) if m.label == "delta" else m for m in authority.members)
    )
    authority.publish()
    with pytest.raises(Refusal, match="membership of site delta had ended"):
        admit(trial, "alpha", data)


def test_a_list_that_was_kept_back_is_remembered_by_who_saw_it(trial):
    """The exchange shows the revocation once and then never again."""
    trial("federation", "revoke", trial.federation, "beta")
    trial.join("alpha")
    serial = trial.authority.roster.serial
    (trial.exchange_path / layout.federation_roster(serial)).unlink()
    site = open_site(trial.site("alpha"))
    asyncio.run(hear_of_members(site, trial.exchange))
    assert site.members().newest().serial == serial


def test_sites_that_never_joined_by_a_list_go_on_as_before(trial, plan):
    create(trial, plan)
    data = trial.exchange.get(layout.manifest("spring-1"))
    path = trial.site("alpha") / "roster"
    path.unlink()
    for name in trial.exchange.list(layout.federation_rosters()):
        (trial.exchange_path / layout.federation_rosters() / name).unlink()
    assert admit(trial, "alpha", data).id == "spring-1"
    assert not path.exists()


def test_a_list_by_another_authority_beside_the_key_stops_the_site(trial, plan):
    create(trial, plan)
    data = trial.exchange.get(layout.manifest("spring-1"))
    path = trial.site("alpha") / "roster"
    listed = path.read_bytes()
    path.write_bytes(listed[:-1] + bytes([listed[-1] ^ 1]))
    with pytest.raises(Refusal) as caught:
        admit(trial, "alpha", data)
    assert caught.value.code == "roster-unusable"


def test_an_auditors_roster_is_made_with_the_job(trial, plan):
    create(trial, plan)
    job = opened(peek(Manifest, trial.exchange.get(layout.manifest("spring-1"))))
    pinned = load_roster(trial.federation / "jobs" / "spring-1" / "roster.json")
    assert pinned.keys == job.roster


# ---- scoring a model that is trained already


def spent(trial, label):
    """What a site was charged for, in order: (job, account, purpose)."""
    site = open_site(trial.site(label))
    ledger = Ledger.open(site.ledger_path, site.identity)
    try:
        charges = [(c, name) for name in ledger.accounts() for c in ledger.charges(name)]
        charges.sort(key=lambda charge: charge[0].reserved.seq)
        return [(c.reserved.job, name, c.reserved.purpose) for c, name in charges]
    finally:
        ledger.close()


@pytest.mark.slow
def test_a_finished_jobs_model_is_scored_for_one_evaluation_per_site(trial, plan):
    create(trial, plan)
    trained, _ = run(trial, "spring-1", SITES)
    before = {label: spent(trial, label) for label in SITES}
    said = create(trial, plan, "score-1", "--evaluate-job", "spring-1")
    assert trained.model_digest.hex() in said
    runner, ends = run(trial, "score-1", SITES)
    assert {end.outcome for end in ends} == {"completed"}
    assert runner.job.plan.plan.rounds == 0
    assert runner.job.manifest.initial_model == runner.model_digest == trained.model_digest
    (record,) = runner.records
    assert record.score is not None
    for label in SITES:
        assert spent(trial, label)[len(before[label]) :] == [
            ("score-1", "visits/evaluate", "evaluate")
        ]
    # the same model by its digest, and from a file
    create(trial, plan, "score-2", "--evaluate", trained.model_digest.hex())
    path = trial.folder / "model"
    path.write_bytes(trial.exchange.get(layout.blob("spring-1", trained.model_digest)))
    create(trial, plan, "score-3", "--evaluate", path)
    made = [load_job(trial.exchange, f"score-{n}", runner.coordinator.authority) for n in (2, 3)]
    assert {job.manifest.initial_model for job in made} == {trained.model_digest}


def test_only_a_model_that_is_there_and_fits_is_scored(trial, plan):
    def refused(*options):
        said = create(trial, plan, "score", *options, status=2)
        assert not (trial.federation / "jobs" / "score").exists()
        return said

    assert "there is no job" in refused("--evaluate-job", "spring-1")
    create(trial, plan)
    assert "has not ended" in refused("--evaluate-job", "spring-1")
    assert "name one of" in refused("--evaluate-job", "spring-1", "--evaluate", "x")
    assert "cannot be read" in refused("--evaluate", trial.folder / "nothing")
    assert "no job in the exchange has" in refused("--evaluate", "ab" * 32)
    path = trial.folder / "model"
    path.write_bytes(b"not a model")
    assert "take the plan it was trained by" in refused("--evaluate", path)


def test_the_model_of_a_job_is_what_its_coordinator_signed(trial, plan):
    create(trial, plan)
    job = load_job(trial.exchange, "spring-1", trial.authority.identity.public)
    lead = open_coordinator(trial.coordinator).identity

    def lies(at, data):
        (trial.exchange_path / at).unlink(missing_ok=True)
        trial.exchange.put(at, data)

    def ending(signer=lead, **changes):
        fields = {
            "manifest": job.digest,
            "sequence": 1,
            "outcome": "completed",
            "reason": "done",
            "model": job.manifest.initial_model,
        }
        lies(layout.end("spring-1"), seal(signer, JobEnd(**(fields | changes))))
        try:
            return final_model(trial.exchange, "spring-1", trial.authority.identity.public)
        except (Refusal, Violation) as error:
            return error.code

    assert ending() == trial.exchange.get(layout.blob("spring-1", job.manifest.initial_model))
    assert ending(model=bytes(32)) == "no-model"
    assert ending(outcome="aborted") == "not-finished"
    assert ending(manifest=bytes(32)) == "manifest-mismatch"
    assert ending(Identity.generate()) == "bad-signature"
    data = ending()
    lies(layout.blob("spring-1", job.manifest.initial_model), data[:-1] + bytes([data[-1] ^ 1]))
    assert ending() == "wrong-digest"
