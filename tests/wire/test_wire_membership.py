"""Lists of members and requests: known answers, and what no list may say."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Refusal, Violation
from fedflow.federation.changes import approved, current, renewed, revoked
from fedflow.privacy.entries import Rotated, SignedEntry, read_entry
from fedflow.wire.membership import (
    NO_KEY,
    FederationRoster,
    JoinRequest,
    Member,
    Role,
    RotationRequest,
)
from fedflow.wire.sealed import Sealed, unseal

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = json.loads((FOLDER / "membership.json").read_text())
KINDS = {
    "member": Member,
    "roster": FederationRoster,
    "join_request": JoinRequest,
    "rotation_request": RotationRequest,
    "rotated": Rotated,
}
CASES = [(name, case) for name, cases in VECTORS.items() for case in cases]
NAMES = [f"{name}-{number}" for name, cases in VECTORS.items() for number in range(len(cases))]


@pytest.mark.parametrize(("name", "case"), CASES, ids=NAMES)
def test_known_answers(name, case):
    wanted, _, bad = name.partition("_bad_")
    kind = KINDS[wanted]
    if bad == "signature":
        with pytest.raises(Violation) as caught:
            unseal(kind, bytes.fromhex(case["sealed"]), PublicKey.from_hex(case["signer"]))
        assert caught.value.code == case["code"]
        return
    data = bytes.fromhex(case["message"])
    if bad:
        with pytest.raises(Violation) as caught:
            kind.decode(data)
        assert caught.value.code == case["code"]
        return
    message = kind.decode(data)
    assert message.encode() == data
    if "sealed" in case:
        signer, sealed = PublicKey.from_hex(case["signer"]), bytes.fromhex(case["sealed"])
        if kind is Rotated:
            signed = Sealed.decode(sealed)
            entry = SignedEntry(signed.body, signed.signature).encode()
            assert read_entry(entry, signer) == message
        else:
            assert unseal(kind, sealed, signer) == message


def test_the_vectors_are_what_their_maker_makes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import make_membership_vectors as maker

    assert maker.written(maker.vectors()) == maker.PATH.read_text()
    assert {name.partition("_bad_")[0] for name in VECTORS} == set(KINDS)
    sys.modules.pop("make_membership_vectors", None)


# ---- whatever an authority does, the list it ends with is one everybody accepts


def join(number, label):
    return JoinRequest(Role.SITE, label, bytes([number + 1]) * 32, 1, "0")


def rotation(old, number, label):
    """As read: signatures were checked before."""
    return RotationRequest(label, old, bytes([number + 1]) * 32, 1, "0", bytes(64))


steps = st.lists(
    st.tuples(
        st.sampled_from(["join", "rotate", "revoke", "renew"]),
        st.integers(0, 9),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=25,
)


@given(steps)
@settings(max_examples=150, deadline=None)
def test_every_change_leaves_a_sound_list(history):
    members, now = (), 1_000_000
    for what, number, label in history:
        now += 10
        before, held = members, current(members, Role.SITE, label)
        listed = {m.public_key for m in members}
        try:
            if what == "join":
                members = approved(members, join(number, label), now, now + 100)
                assert held is None
                assert bytes([number + 1]) * 32 not in listed
            elif what == "rotate":
                old = held.public_key if held else bytes([number + 2]) * 32
                members = approved(members, rotation(old, number, label), now, now + 100)
                assert current(members, Role.SITE, label).previous == old
            elif what == "revoke":
                members = revoked(members, Role.SITE, label, now)
                assert current(members, Role.SITE, label) is None
            else:
                members = renewed(members, Role.SITE, label, now + 50)
        except Refusal:
            assert members == before
            continue
        roster = FederationRoster("trial", 1, now, members, bytes([99]) * 32)
        assert FederationRoster.decode(roster.encode()) == roster
        # nothing is forgotten, and what was revoked stays so
        assert [m.public_key for m in before] == [m.public_key for m in members][: len(before)]
        for old in before:
            assert not old.revoked or roster.member(old.public_key) == old
        # a key counts for one label, and a label has one key
        active = roster.active(Role.SITE, now)
        assert len({m.label for m in active}) == len(active)
        for member in members:
            earlier = roster.earlier_keys(member.public_key)
            assert member.public_key not in earlier
            assert all(roster.member(key).revoked for key in earlier)


keys = st.integers(0, 3).map(lambda n: bytes([n]) * 32)


@given(
    st.lists(
        st.builds(
            Member,
            role=st.sampled_from([1, 2]),
            label=st.sampled_from(["a", "b"]),
            public_key=keys,
            not_before=st.just(1),
            not_after=st.just(2),
            revoked=st.sampled_from([0, 5]),
            previous=keys,
        ),
        max_size=4,
    ).map(tuple)
)
@settings(max_examples=200, deadline=None)
def test_a_list_that_reads_has_no_key_twice_and_no_broken_line_of_keys(members):
    roster = FederationRoster("trial", 1, 1, members)
    try:
        for member in members:
            member.check()
        roster.check()
    except Violation:
        return
    assert len({m.public_key for m in members}) == len(members)
    assert NO_KEY not in {m.public_key for m in members}
    for member in members:
        for key in roster.earlier_keys(member.public_key):
            old = roster.member(key)
            assert (old.role, old.label, bool(old.revoked)) == (member.role, member.label, True)
    current_ones = [(m.role, m.label) for m in members if not m.revoked]
    assert len(set(current_ones)) == len(current_ones)
