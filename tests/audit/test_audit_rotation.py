"""A site's key is replaced between two jobs: one ledger, one budget, and an audit over both."""

import json
import shutil

import numpy as np
import pytest
from federation import Federation, make_plan

from fedflow.audit.verify import verify_folder
from fedflow.coordinator.job import create_job, load_job, write_roster
from fedflow.crypto.identity import Identity
from fedflow.exchange import layout
from fedflow.history import Rules, first_state
from fedflow.learning.model_file import encode_model, flatten
from fedflow.privacy.ledger import Ledger
from fedflow.wire.membership import FederationRoster, Member, Role
from fedflow.wire.messages import Countersignature
from fedflow.wire.sealed import seal

JOB = "second-job"
ARRAYS = {"b": np.zeros(2, np.float32), "w": np.full((2, 3), 0.5, np.float32)}


def second_job(first: Federation, identities: dict[str, Identity]) -> Federation:
    """Another job of the same parties and ledgers, with the keys they have now."""
    made = object.__new__(Federation)
    vars(made).update(vars(first))
    made.job_id, made.sites, made.sequence = JOB, identities, 0
    data = encode_model(ARRAYS)
    create_job(
        made.exchange,
        job=JOB,
        plan=make_plan(),
        reference_persons=100,
        sites={label: i.public for label, i in identities.items()},
        coordinator=made.coordinator.public,
        authority=made.authority,
        initial_model=data,
        spec=made.spec,
    )
    made.job = load_job(made.exchange, JOB, made.authority.public)
    made.identities = {i: identities[label] for i, label in made.job.labels.items()}
    made.vector = flatten(ARRAYS)
    made.rules, made.state = Rules(made.job.manifest, made.job.plan, made.spec), None
    made.state = first_state(made.job.manifest)
    for index, identity in made.identities.items():
        bound = seal(identity, Countersignature(made.job.digest, index))
        made.exchange.put(layout.countersign(JOB, index), bound)
    return made


def members(made: Federation, old: Identity, new: Identity, label: str) -> FederationRoster:
    entry = Member(Role.SITE, label, old.public.raw, 1, 1 << 40, revoked=5)
    heir = Member(Role.SITE, label, new.public.raw, 1, 1 << 40, 0, old.public.raw)
    return FederationRoster("trial", 1, 1, (entry, heir), made.authority.public.raw)


def thief_of(made: Federation, target, path) -> Ledger:
    """A copy of east's ledger as it was, with its old key: whoever took both."""
    shutil.copy(made.folder / "sites" / "east" / "ledger.sqlite", path)
    return Ledger.open(path, target)


@pytest.fixture(scope="module")
def rotated(tmp_path_factory):
    """Two jobs; the site "east" has another key in the second one."""
    root = tmp_path_factory.mktemp("rotated")
    first = Federation(root / "job")
    first.run(1)
    first.run(2)
    first.end()
    old, new = first.sites["east"], Identity.generate()
    index = first.job.index("east")
    first.before = first.ledgers[index].account_status("demo/train")
    first.stolen = thief_of(first, old, root / "stolen.sqlite")
    first.ledgers[index].rotate(new)
    second = second_job(first, first.sites | {"east": new})
    second.run(1)
    second.finish()
    known = members(second, old, new, "east")
    write_roster(root / "job" / "audit" / "roster.json", second.job, second.authority.public, known)
    second.old, second.new, second.index = old, new, index
    return second


@pytest.fixture
def folder(rotated, tmp_path):
    shutil.copytree(rotated.folder, tmp_path / "job")
    return tmp_path / "job"


def codes(report):
    return {f.code for f in report.findings if f.severity == "error"}


def warnings(report):
    return {f.code for f in report.findings if f.severity == "warning"}


def test_the_budget_goes_on_and_the_audit_follows(rotated, folder):
    report = verify_folder(folder, roster=folder / "audit" / "roster.json")
    assert codes(report) == set(), report.findings
    ledger = rotated.ledgers[rotated.index]
    after = ledger.account_status("demo/train")
    assert after.epsilon_left < rotated.before.epsilon_left
    spent = next(e for e in report.epsilons if (e.site, e.account) == ("east", "demo/train"))
    assert spent.releases == 3  # two before, one after


def test_without_the_earlier_key_the_first_job_is_not_the_pinned_sites(folder):
    path = folder / "audit" / "roster.json"
    raw = json.loads(path.read_text())
    for site in raw["sites"]:
        site.pop("earlier_keys", None)
    path.write_text(json.dumps(raw))
    assert "unknown-site" in codes(verify_folder(folder, roster=path))


def test_an_auditor_who_knows_only_the_old_key_is_told_of_the_new_one(rotated, folder):
    path = folder / "audit" / "roster.json"
    raw = json.loads(path.read_text())
    site = next(site for site in raw["sites"] if site["label"] == "east")
    (site["public_key"],) = site.pop("earlier_keys")
    path.write_text(json.dumps(raw))
    report = verify_folder(folder, roster=path)
    assert "unpinned-key" in warnings(report)
    assert "unknown-site" in codes(report)  # the second job


def test_a_thief_of_the_old_key_cannot_fork_the_ledger_unnoticed(rotated, folder):
    stolen = rotated.stolen
    stolen.open_account("demo/other", epsilon=3.0, delta=1e-5, order=12.0)
    ledgers = folder / "audit" / "ledgers"
    stolen.export(ledgers / "found.jsonl")  # goes on under the old key
    assert "two-histories" in codes(verify_folder(folder))
    honest = (ledgers / "east.jsonl").read_text()
    shutil.move(ledgers / "found.jsonl", ledgers / "east.jsonl")  # shown instead of the honest one
    found = codes(verify_folder(folder))
    assert {"two-histories", "old-ledger", "uncharged-release"} & found
    (ledgers / "east.jsonl").write_text(honest)
    assert codes(verify_folder(folder)) == set()


def test_a_thief_who_names_a_key_of_their_own_is_found(rotated, folder, tmp_path):
    copy = tmp_path / "copy.sqlite"
    stolen = rotated.stolen
    shutil.copy(stolen._journal.store.path, copy)
    forked = Ledger.open(copy, rotated.old)
    forked.rotate(Identity.generate())
    forked.export(folder / "audit" / "ledgers" / "east.jsonl")
    assert "unpinned-key" in codes(verify_folder(folder))


def test_an_export_of_before_is_the_beginning_of_the_one_after(rotated, folder):
    full = (folder / "audit" / "ledgers" / "east.jsonl").read_text().splitlines()
    assert json.loads(full[0]) == {"key": rotated.old.public.hex()}
    report = verify_folder(folder)
    assert codes(report) == set()


@pytest.mark.parametrize("name", ["east.jsonl", "some.jsonl"])
def test_a_first_key_that_is_not_the_ledgers_is_found(rotated, folder, name):
    path = folder / "audit" / "ledgers" / "east.jsonl"
    lines = path.read_text().splitlines()
    lines[0] = json.dumps({"key": Identity.generate().public.hex()})
    path.unlink()
    path.with_name(name).write_text("\n".join(lines) + "\n")
    found = codes(verify_folder(folder))
    assert found & {"foreign-ledger", "no-ledger"}, found
