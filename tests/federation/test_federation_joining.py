"""From nothing to members, with every hand that could be in between."""

import os
import time
from pathlib import Path

import pytest
from federation_walk import EXCHANGE, fingerprint, member, request_file, sealed

from fedflow.crypto.identity import Identity
from fedflow.errors import InputError, Refusal, Violation
from fedflow.exchange import layout
from fedflow.federation import joining
from fedflow.federation.changes import read_request
from fedflow.federation.joining import join_site
from fedflow.federation.members import RosterMemory
from fedflow.federation.toml_edit import set_values
from fedflow.site.config import open_site
from fedflow.site.policy import load_policy
from fedflow.wire.membership import FederationRoster, JoinRequest, Role
from fedflow.wire.sealed import peek, seal


def test_a_federation_from_nothing(trial):
    facts = trial.facts("federation", "show", trial.federation)
    assert {(m["role"], m["label"], m["state"]) for m in facts["members"]} == {
        ("coordinator", "coordinator", "active"),
        *(("site", label, "active") for label in ("alpha", "beta", "delta", "gamma")),
    }
    site = open_site(trial.site("alpha"))
    assert site.policy.trust.authority == trial.authority.identity.public.hex()
    coordinator = Identity.load(trial.coordinator / "identity.pem").public.hex()
    assert site.policy.trust.coordinators == (coordinator,)
    assert Path(site.exchange).resolve() == trial.exchange_path
    assert site.members().newest() == trial.authority.roster
    assert oct(trial.federation.stat().st_mode)[-3:] == "700"
    assert fingerprint(trial.federation) in trial("federation", "show", trial.federation)


def test_joining_changes_only_what_it_says(walk):
    walk.found()
    walk("site", "init", walk.site("alpha"), "--label", "alpha")
    policy = walk.site("alpha") / "policy.toml"
    mine = policy.read_text().replace("[trust]", "[trust]  # ask Ada before changing this")
    mine = mine.replace("coordinators = []", "coordinators = [  # none yet\n]  # really")
    policy.write_text(mine)
    policy.chmod(0o640)
    limits = load_policy(policy).limits
    walk.approve(walk.request("alpha"), fingerprint(walk.site("alpha")))
    walk.join("alpha")
    text = policy.read_text()
    assert text.count("\n") >= mine.count("\n") - 1
    kept = [
        line for line in mine.splitlines() if "authority =" not in line and "none yet" not in line
    ]
    assert [line for line in kept if line not in text.splitlines() and "really" not in line] == []
    assert "ask Ada" in text
    assert "really" in text
    assert oct(policy.stat().st_mode)[-3:] == "640"
    assert load_policy(policy).limits == limits


def test_a_fingerprint_must_match_and_yes_is_not_one(walk):
    walk.found()
    walk("site", "init", walk.site("alpha"), "--label", "alpha")
    path = walk.request("alpha")
    before = walk.authority.roster
    said = walk.approve(path, status=2)  # nobody at a terminal, nothing compared
    assert "read to you" in said
    wrong = Identity.generate().public.fingerprint()
    assert "not that of site alpha" in walk.approve(path, wrong, status=2)
    assert "whole fingerprint" in walk.approve(path, wrong[:19], status=2)
    walk("federation", "approve", walk.federation, path, "--yes", status=2)
    assert walk.authority.roster == before
    walk.approve(path, fingerprint(walk.site("alpha")).upper().replace(" ", "-"))


def test_someone_who_swaps_the_request_is_found_by_the_fingerprint(walk):
    walk.found()
    walk("site", "init", walk.site("alpha"), "--label", "alpha")
    heard = fingerprint(walk.site("alpha"))
    swapped = request_file(walk.folder / "swapped", Identity.generate(), "alpha")
    assert "not that of site alpha" in walk.approve(swapped, heard, status=2)


def test_a_request_for_somebody_elses_key_is_nothing():
    thief, victim = Identity.generate(), Identity.generate()
    asked = JoinRequest(Role.SITE, "alpha", victim.public.raw, 1, "0")
    with pytest.raises(Violation) as caught:
        read_request(seal(thief, asked))
    assert caught.value.code == "bad-signature"


def test_a_label_that_is_held_cannot_be_taken(trial):
    thief = Identity.generate()
    path = request_file(trial.folder / "thief", thief, "alpha")
    said = trial.approve(path, thief.public.fingerprint(), status=2)
    assert "alpha is a member with the key" in said


def test_two_requests_with_one_label_are_refused_together(walk):
    walk.found()
    one, other = Identity.generate(), Identity.generate()
    paths = [request_file(walk.folder / str(n), i, "alpha") for n, i in enumerate((one, other))]
    before = walk.authority.roster
    walk.approve(*paths, *(i.public.fingerprint() for i in (one, other)), status=2)
    assert walk.authority.roster == before


def test_a_request_counts_once(trial):
    path, heard = trial.folder / "alpha.request", fingerprint(trial.site("alpha"))
    assert "already" in trial.approve(path, heard, status=2)
    trial("federation", "revoke", trial.federation, "alpha")
    assert "never counts again" in trial.approve(path, heard, status=2)


def test_the_same_key_is_not_two_members(trial):
    own = Identity.load(trial.site("alpha") / "identity.pem")
    path = request_file(trial.folder / "again", own, "omega")
    assert "already" in trial.approve(path, own.public.fingerprint(), status=2)


def test_a_list_by_somebody_else_is_refused(walk):
    walk.found()
    walk("site", "init", walk.site("alpha"), "--label", "alpha")
    own = Identity.load(walk.site("alpha") / "identity.pem").public
    forger = Identity.generate()
    forged = walk.folder / "forged"
    entry = member(Role.SITE, "alpha", own.raw, not_after=1 << 40)
    forged.write_bytes(sealed(forger, entry))
    heard = fingerprint(walk.federation)
    said = walk(
        "site", "join", walk.site("alpha"), forged, "--authority-fingerprint", heard, status=2
    )
    assert "not that of the list's authority" in said
    # the forger also claims to be the authority
    claimed = sealed(forger, entry, authority=walk.authority.identity.public.raw)
    forged.write_bytes(claimed)
    walk("site", "join", walk.site("alpha"), forged, "--authority-fingerprint", heard, status=2)
    walk("site", "join", walk.site("alpha"), forged, status=2)  # without any comparison
    assert open_site(walk.site("alpha")).policy.trust.authority == ""
    assert not (walk.site("alpha") / "roster").exists()


def test_a_site_that_is_not_listed_does_not_join(walk):
    walk.found()
    walk("site", "init", walk.site("alpha"), "--label", "alpha")
    assert "is not in the list" in walk.join("alpha", status=2)
    assert open_site(walk.site("alpha")).policy.trust.authority == ""


def test_a_pinned_authority_stays(trial, walk, tmp_path, monkeypatch, capsys):
    other = type(walk)(tmp_path / "other", monkeypatch, capsys)
    (tmp_path / "other").mkdir()
    other.found()
    own = Identity.load(trial.site("alpha") / "identity.pem")
    path = request_file(tmp_path / "x", own, "alpha")
    other.approve(path, own.public.fingerprint())
    said = trial(
        "site",
        "join",
        trial.site("alpha"),
        other.federation / "roster",
        "--authority-fingerprint",
        fingerprint(other.federation),
        status=2,
    )
    assert "another authority is pinned" in said


def test_an_older_list_never_comes_back(trial):
    old = (trial.federation / "roster").read_bytes()
    trial("federation", "revoke", trial.federation, "beta")
    trial.join("alpha")
    (trial.folder / "old").write_bytes(old)
    said = trial("site", "join", trial.site("alpha"), trial.folder / "old", status=2)
    assert "stays revoked" in said
    memory = open_site(trial.site("alpha")).members()
    assert memory.newest() == trial.authority.roster


def test_an_exchange_that_serves_an_old_list_is_found_by_who_has_seen_more(trial):
    trial("federation", "revoke", trial.federation, "beta")
    trial.join("alpha")
    newest = trial.exchange_path / layout.federation_roster(trial.authority.roster.serial)
    newest.unlink()  # the exchange keeps it back
    memory = open_site(trial.site("alpha")).members()
    assert memory.refresh(trial.exchange) == trial.authority.roster
    assert "stays revoked" in trial.join("alpha", status=2)


def test_an_authority_put_back_to_an_older_copy_cannot_unsay_what_it_said(trial):
    old = (trial.federation / "roster").read_bytes()
    trial("federation", "revoke", trial.federation, "beta")
    trial.join("alpha")
    (trial.federation / "roster").write_bytes(old)
    said = trial("federation", "publish", trial.federation, status=2)
    assert "older copy" in said
    # two more changes elsewhere: a higher serial, but beta is back
    authority = trial.authority
    for _ in range(3):
        authority.sign(authority.members)
    memory = open_site(trial.site("alpha")).members()
    with pytest.raises(Violation) as caught:
        memory.learn(authority.sealed())
    assert caught.value.code == "roster-rollback"


def test_one_serial_has_one_list(tmp_path):
    authority = Identity.generate()
    memory = RosterMemory(tmp_path / "roster", authority.public)
    memory.learn(sealed(authority, serial=4))
    memory.learn(sealed(authority, serial=4))
    with pytest.raises(Violation) as caught:
        memory.learn(sealed(authority, serial=4, issued=5))
    assert caught.value.code == "two-rosters"
    with pytest.raises(Violation) as caught:
        memory.learn(sealed(authority, serial=9, federation="another"))
    assert caught.value.code == "other-federation"
    with pytest.raises(Violation):
        memory.learn(sealed(Identity.generate(), serial=9))
    assert memory.newest().serial == 4


def test_names_that_others_took_in_the_exchange_are_passed_over(trial):
    serial = trial.authority.roster.serial
    for number in (1, 2):
        trial.exchange.put(layout.federation_roster(serial + number), b"mine now")
    trial("federation", "revoke", trial.federation, "beta")
    assert trial.authority.roster.serial == serial + 3
    trial.join("alpha")
    assert open_site(trial.site("alpha")).members().newest() == trial.authority.roster


def test_an_exchange_that_is_away_is_published_to_later(trial):
    os.rename(trial.exchange_path, trial.folder / "away")
    trial.exchange_path.write_text("not a folder")
    said = trial("federation", "revoke", trial.federation, "beta")
    assert "not published" in said
    trial("federation", "publish", trial.federation, status=2)
    trial.exchange_path.unlink()
    os.rename(trial.folder / "away", trial.exchange_path)
    trial("federation", "publish", trial.federation)
    data = trial.exchange.get(layout.federation_roster(trial.authority.roster.serial))
    assert peek(FederationRoster, data) == trial.authority.roster


def test_a_crash_while_joining_is_repeated(walk, monkeypatch):
    """Whichever file was written last, joining again ends the same."""
    walk.found("alpha", "beta")
    heard = fingerprint(walk.federation)
    walk("site", "init", walk.site("crash"), "--label", "crash")
    walk.approve(walk.request("crash"), fingerprint(walk.site("crash")))
    steps = []
    real = joining.set_values

    def cut(*arguments):
        if len(steps) < 2:
            steps.append(arguments)
            if len(steps) == 1:
                raise KeyboardInterrupt
            real(*arguments)
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(joining, "set_values", cut)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            join_site(walk.site("crash"), exchange=EXCHANGE, fingerprint=heard)
    join_site(walk.site("crash"), exchange=EXCHANGE, fingerprint=heard)
    site = open_site(walk.site("crash"))
    assert Path(site.exchange).resolve() == walk.exchange_path
    assert len(site.policy.trust.coordinators) == 1


def test_a_revoked_coordinator_is_no_longer_trusted(trial):
    trial("federation", "revoke", trial.federation, "coordinator", "--role", "coordinator")
    trial.join("alpha")
    assert open_site(trial.site("alpha")).policy.trust.coordinators == ()


def test_a_revoked_or_expired_site_cannot_join(trial, monkeypatch):
    trial("federation", "revoke", trial.federation, "alpha")
    assert "revoked this key" in trial.join("alpha", status=2)
    later = time.time() + 400 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert "has ended" in trial.join("beta", status=2)
    shown = trial("federation", "show", trial.federation)
    assert "expired" in shown
    trial("federation", "renew", trial.federation, "beta", "--days", "20")
    assert "ends in 20 days" in trial("federation", "show", trial.federation).replace("19", "20")
    trial.join("beta")


def test_a_passphrase_protects_the_authority(walk, monkeypatch):
    monkeypatch.setenv("FEDFLOW_KEY_PASSPHRASE", "correct horse")
    walk("federation", "init", walk.federation, "--name", "trial", "--exchange", walk.folder / "x")
    assert b"ENCRYPTED" in (walk.federation / "identity.pem").read_bytes()
    monkeypatch.setenv("FEDFLOW_KEY_PASSPHRASE", "wrong")
    assert "passphrase is wrong" in walk("federation", "show", walk.federation, status=2)


def test_a_site_without_an_exchange_says_what_to_do(walk):
    walk("site", "init", walk.site("alpha"), "--label", "alpha")
    with pytest.raises(Refusal) as caught:
        _ = open_site(walk.site("alpha")).exchange
    assert "site join" in caught.value.message


def test_settings_that_cannot_be_edited_safely_are_left_alone(tmp_path):
    path = tmp_path / "x.toml"
    for text in (
        'trust = {authority = ""}\n',
        '[other]\nauthority = ""\n',
        "trust.authority = ''\n",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="write it there"):
            set_values(path, "trust", {"authority": "ab"})
        assert path.read_text() == text
    path.write_text(
        'x = """\nauthority = 1\n"""\n[trust]\nauthority = "a#b" # c\nlist = [\n "1", # ]\n]\n'
    )
    set_values(path, "trust", {"authority": 'q"', "list": ["2"]})
    assert path.read_text() == (
        'x = """\nauthority = 1\n"""\n[trust]\nauthority = "q\\"" # c\nlist = ["2"]\n'
    )
