"""A site's key is replaced: asked for with both keys, and never half done after a crash."""

import pytest
from federation_walk import EXCHANGE, fingerprint

from fedflow.anchors import Anchors
from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import InputError, Refusal, Violation
from fedflow.federation.changes import approved, read_request
from fedflow.federation.joining import join_site
from fedflow.federation.requests import rotation_request
from fedflow.privacy.ledger import Ledger
from fedflow.secagg.positions import Position
from fedflow.site import new_key
from fedflow.site.config import lock_site, open_site
from fedflow.wire.membership import RotationRequest
from fedflow.wire.sealed import seal


class PowerCut(BaseException):
    """The process is gone."""


def ask(trial, label="alpha"):
    """Ask for a new key and have it approved; the new public key."""
    path = trial.folder / f"{label}.rotation"
    trial("site", "rotate-key", trial.site(label), "-o", path)
    new = Identity.load(trial.site(label) / "identity.next.pem").public
    trial.approve(path, new.fingerprint())
    return new


def spend(site):
    """Something on the ledger that a reset would lose."""
    ledger = Ledger.open(site.ledger_path, site.identity)
    ledger.open_account("visits/train", epsilon=3.0, delta=1e-5, order=12.0)
    status = ledger.account_status("visits/train")
    ledger.close()
    return status


def test_a_key_is_replaced_and_the_ledger_goes_on(trial):
    site = open_site(trial.site("alpha"))
    old, before = site.identity.public, spend(site)
    new = ask(trial)
    assert open_site(site.path).identity.public == old  # nothing yet
    trial("site", "join", site.path, "--exchange", EXCHANGE)  # the authority is pinned already
    assert f"is now {new.fingerprint()}" in trial.out
    site = open_site(site.path)
    assert site.identity.public == new
    assert not (site.path / "identity.next.pem").exists()
    ledger = Ledger.open(site.ledger_path, site.identity)
    assert (ledger.keys, ledger.account_status("visits/train")) == ((old, new), before)
    ledger.close()
    listed = trial.authority.roster
    assert listed.member(old.raw).revoked
    assert listed.member(new.raw).previous == old.raw
    assert listed.earlier_keys(new.raw) == (old.raw,)
    assert "goes on under" in trial("ledger", "show", site.path)
    trial("ledger", "verify", site.path)
    trial("ledger", "export", site.path, trial.folder / "x.jsonl")
    for key in (old, new):
        trial("ledger", "verify", trial.folder / "x.jsonl", "--key", key.hex())


def test_the_new_key_can_be_activated_by_hand_once_it_is_listed(trial):
    new = ask(trial)
    said = trial("site", "rotate-key", trial.site("alpha"), "--activate", status=2)
    assert "does not name the new key" in said
    memory = open_site(trial.site("alpha")).members()
    memory.refresh(trial.exchange)
    trial("site", "rotate-key", trial.site("alpha"), "--activate")
    assert open_site(trial.site("alpha")).identity.public == new
    trial("site", "rotate-key", trial.site("alpha"), "--activate", status=2)


def test_asking_twice_is_asking_for_the_same_key(trial):
    for name in ("one", "two"):
        trial("site", "rotate-key", trial.site("alpha"), "-o", trial.folder / name)
    read = [read_request((trial.folder / name).read_bytes()).new_key for name in ("one", "two")]
    assert read[0] == read[1]


def test_a_running_agent_is_not_robbed_of_its_key(trial):
    ask(trial)
    lock = lock_site(trial.site("alpha"))
    assert "already runs" in trial("site", "join", trial.site("alpha"), status=2)
    lock.close()
    trial("site", "join", trial.site("alpha"))


@pytest.mark.parametrize("step", range(5))
def test_power_that_goes_at_any_step_leaves_one_ledger_and_one_key(trial, monkeypatch, step):
    site = open_site(trial.site("alpha"))
    old, before = site.identity.public, spend(site)
    new = ask(trial)
    real_rotate, real_succeed = Ledger.rotate, Anchors.succeed

    def cut(*_):
        raise PowerCut

    def after(real):
        def call(*arguments):
            real(*arguments)
            raise PowerCut

        return call

    at, name, hook = [
        (Ledger, "rotate", cut),
        (Ledger, "rotate", after(real_rotate)),
        (Anchors, "succeed", cut),
        (Anchors, "succeed", after(real_succeed)),
        (new_key, "sync_folder", cut),
    ][step]
    with monkeypatch.context() as patch:
        patch.setattr(at, name, hook)
        with pytest.raises(PowerCut):
            join_site(site.path, exchange=EXCHANGE)
    again = open_site(site.path)  # as the agent's next start does
    assert again.identity.public == (old if step == 0 else new)
    ledger = Ledger.open(again.ledger_path, again.identity)
    assert ledger.account_status("visits/train") == before
    ledger.close()
    join_site(site.path, exchange=EXCHANGE)
    assert open_site(site.path).identity.public == new
    assert not (site.path / "identity.next.pem").exists()
    ledger = Ledger.open(site.ledger_path, new)
    assert ledger.keys == (old, new)
    ledger.close()


def test_only_the_key_a_member_has_names_the_next(trial):
    """A stranger, an old key after its end, and another site: none can put a key on a label."""
    alpha = Identity.load(trial.site("alpha") / "identity.pem")
    beta = Identity.load(trial.site("beta") / "identity.pem")
    members, now = trial.authority.members, 1_900_000_000
    for thief in (Identity.generate(), beta):
        request = read_request(rotation_request(thief, Identity.generate(), "alpha"))
        with pytest.raises(Refusal) as caught:
            approved(members, request, now, now + 1)
        assert caught.value.code == "not-a-member"
    moved = approved(
        members, read_request(rotation_request(alpha, Identity.generate(), "alpha")), now, now + 1
    )
    late = read_request(rotation_request(alpha, Identity.generate(), "alpha"))
    with pytest.raises(Refusal, match="own key can name the next"):
        approved(moved, late, now, now + 1)
    listed = read_request(rotation_request(alpha, beta, "alpha"))
    with pytest.raises(Refusal, match="listed already"):
        approved(members, listed, now, now + 1)


def test_a_rotation_needs_both_signatures():
    old, new, victim = (Identity.generate() for _ in range(3))
    data = rotation_request(old, new, "alpha")
    good = read_request(data)
    assert isinstance(good, RotationRequest)
    from dataclasses import replace

    for bad in (
        replace(good, new_key=victim.public.raw),
        replace(good, label="beta"),
        replace(good, made=good.made + 1),
        replace(good, consent=bytes(64)),
    ):
        with pytest.raises(Violation) as caught:
            read_request(seal(old, bad))
        assert caught.value.code == "bad-signature"
    with pytest.raises(Violation):
        read_request(seal(new, good))


def test_a_lost_key_is_revoked_and_a_new_folder_joins(trial):
    """Nothing signs for a lost key: the site starts anew, and the list does not claim otherwise."""
    trial("federation", "revoke", trial.federation, "alpha")
    path = trial.site("alpha-2")
    trial("site", "init", path, "--label", "alpha")
    trial("site", "request", path, "-o", trial.folder / "again")
    trial.approve(trial.folder / "again", fingerprint(path))
    trial("site", "join", path, "--exchange", EXCHANGE, "--authority-fingerprint",
          fingerprint(trial.federation))  # fmt: skip
    new = open_site(path).identity.public
    assert trial.authority.roster.earlier_keys(new.raw) == ()


def test_what_was_seen_of_an_old_key_holds_for_the_one_that_follows(tmp_path):
    anchors = Anchors(tmp_path / "anchors.sqlite")
    one, two, three, other = (Identity.generate().public for _ in range(4))
    head = bytes(range(32))
    anchors.seen({0: one, 1: other}, {0: Position(7, head), 1: Position(3, head)})
    chain = [(one, two), (two, three)]
    for _ in range(2):
        anchors.succeed(chain)
        assert anchors.floors({0: two, 1: three}) == {0: Position(8), 1: Position(9)}
    anchors.seen({0: two}, {0: Position(20, head)})
    anchors.seen({0: one}, {0: Position(10, head)})
    anchors.succeed(chain)
    floors = anchors.floors({0: one, 1: two, 2: three, 3: other})
    assert floors == {
        0: Position(10, head),
        1: Position(20, head),
        2: Position(21),
        3: Position(3, head),
    }
    assert not floors[2].allows(Position(20, head))  # a ledger that was put back before rotating


def test_somebody_elses_ledger_does_not_make_a_key_active(trial):
    ask(trial)
    path = trial.site("alpha")
    (path / "ledger.sqlite").unlink()
    Ledger.create(path / "ledger.sqlite", Identity.generate(), "alpha").close()
    with pytest.raises(InputError, match="not the ledger of"):
        new_key.activate(path)
    assert PublicKey(Identity.load(path / "identity.pem").public.raw)
