"""The attacks on secure aggregation that the documentation lists, one named test for each:
survivor sets, replays, keys, rosters. The other rows: test_adversary_attacks_on_jobs.py.
"""

from __future__ import annotations

import dataclasses

import pytest
from aggregation_rounds import Round, context, identity, make_client, roster_of
from decoders import MESSAGES

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.crypto.kdf import pair_mask_key, self_mask_key, share_key
from fedflow.crypto.suites import suite
from fedflow.errors import Misuse, Violation
from fedflow.privacy.entries import ENTRY_LABEL, HEAD_LABEL
from fedflow.secagg import messages
from fedflow.secagg.context import RoundContext
from fedflow.secagg.messages import Advert, Consistency, Roster, Signed, Survivors
from fedflow.secagg.server import SecAggServer
from fedflow.secagg.states import Leg
from fedflow.wire.messages import Manifest, Order, RosterEntry

FALSE_ALARM = 1e-7
SITES = (0, 1, 2, 3, 4)
ROUND = {"colluders": 1, "minimum": 4}


def code_of(call) -> str:
    with pytest.raises(Violation) as caught:
        call()
    return caught.value.code


# ---- different survivor sets to different sites


def test_different_survivor_sets_to_different_sites():
    """One set per site and context, and no set without the signatures of most. The search for
    schedules that break this is test_adversary_machine.py."""
    rounds = Round(SITES, **ROUND)
    rounds.masked()
    cohort = rounds.clients[0]._u1
    one, other = ((0, 1, 2, 3), (1, 2, 3, 4))
    signed = {}
    for site, survivors in {0: one, 1: one, 2: other, 3: other, 4: other}.items():
        bitmap = Survivors(cohort.bitmap(survivors)).encode()
        signed[site] = Signed.decode(rounds.clients[site].on_survivors(bitmap))
    again = Survivors(cohort.bitmap(other)).encode()
    assert code_of(lambda: rounds.clients[0].on_survivors(again)) == "second-survivor-set"
    mixed = Consistency(tuple(signed[s] for s in (1, 2, 3)), ())
    codes = {code_of(lambda s=s: rounds.clients[s].on_consistency(mixed.encode())) for s in (1, 2)}
    assert codes <= {"bad-signature", "too-few-signatures", "bad-signers"}


def test_the_same_site_alive_and_dead():
    """One bitmap says who is alive; dropped is what the site itself computes. A survivor that never
    dealt shares is refused."""
    rounds = Round(SITES, **ROUND, drops={Leg.SHARES: (4,)})
    rounds.masked()
    for site, stranger in ((0, SITES), (1, (0, 1, 2, 4))):
        bitmap = Survivors(rounds.clients[site]._u1.bitmap(stranger)).encode()
        assert code_of(lambda s=site, b=bitmap: rounds.clients[s].on_survivors(b)) == (
            "bad-survivors"
        )


# ---- replay: cross-round and cross-protocol


def all_keys(ctx: bytes) -> set[bytes]:
    secret = bytes(range(32))
    return {
        self_mask_key(secret, ctx, 3),
        pair_mask_key(secret, ctx, 3, 4),
        share_key(secret, ctx, 3, 4),
        share_key(secret, ctx, 4, 3),
    }


def variants(value):
    """A value of the same type, in every way slightly different."""
    if isinstance(value, bytes):
        flips = [0, len(value) // 2, len(value) - 1]
        return [value[:at] + bytes((value[at] ^ 1,)) + value[at + 1 :] for at in flips]
    return [(*value, 7)] if isinstance(value, tuple) else [value + 1]


def test_any_change_to_the_round_changes_every_key():
    """Every field of the round, of the order and of the manifest is in every key and signature:
    nothing of one round means anything in another."""
    base = context()
    digests = {base.digest()}
    for field in dataclasses.fields(RoundContext):
        for value in variants(getattr(base, field.name)):
            digests.add(dataclasses.replace(base, **{field.name: value}).digest())
    assert len(digests) == 1 + 4 * 3 + 3
    order = Order(bytes(32), 5, 3, 1, 1, bytes(32), bytes(32), 8.0, 9, 10)
    for field in dataclasses.fields(Order):
        value = getattr(order, field.name)
        if field.name == "kind":
            value = 1
        changed = dataclasses.replace(order, **{field.name: variants(value)[0]})
        digests.add(RoundContext.of(changed).digest())
    assert len(digests) == 16 + len(dataclasses.fields(Order))
    roster = tuple(RosterEntry(i, bytes((i,)) * 32, f"site-{i}") for i in range(3))
    manifest = Manifest(
        *("job", bytes(32), roster, 0, 3, 8, bytes(32), bytes(32), 8.0, b"plan", 1, 9)
    )
    hashes = {manifest.digest()}
    for field in dataclasses.fields(Manifest):
        value = getattr(manifest, field.name)
        if field.name == "roster":
            other = value[:2]
        elif isinstance(value, str):
            other = value + "x"
        else:
            other = variants(value)[0]
        hashes.add(dataclasses.replace(manifest, **{field.name: other}).digest())
    assert len(hashes) == 1 + len(dataclasses.fields(Manifest))
    keys = [key for digest in sorted(digests) for key in all_keys(digest)]
    assert len(set(keys)) == len(keys) == 4 * len(digests)


def test_any_change_to_the_cohort_changes_the_context():
    """Who is in, with which keys, suite and vouch: all of it is in the context."""
    rounds = Round(SITES, **ROUND)
    adverts = Roster.decode(rounds.adverts()).adverts
    from fedflow.secagg.cohort import context_of

    seen = {context_of(adverts, rounds.round_ctx), context_of(adverts[:4], rounds.round_ctx)}
    for name in ("vouches", "mask_key", "share_key", "signature"):
        value = 0 if name == "vouches" else variants(getattr(adverts[0], name))[0]
        changed = dataclasses.replace(adverts[0], **{name: value})
        seen.add(context_of((changed, *adverts[1:]), rounds.round_ctx))
    assert len(seen) == 6


def test_a_signature_for_one_purpose_is_none_for_another():
    """Cross-protocol: all labels of the package are distinct, and none verifies as another."""
    labels = {kind.SEAL for kind in MESSAGES.values() if hasattr(kind, "SEAL")}
    labels |= {getattr(messages, name) for name in dir(messages) if name.endswith("_LABEL")}
    labels |= {ENTRY_LABEL, HEAD_LABEL}
    assert len(labels) >= 14
    signer = Identity.generate()
    for label in labels:
        signature = signer.sign(label, b"body")
        for other in labels:
            if other == label:
                signer.public.verify(other, b"body", signature)
            else:
                assert (
                    code_of(lambda o=other, s=signature: signer.public.verify(o, b"body", s))
                    == "bad-signature"
                )


def test_every_message_of_another_attempt_is_refused():
    """Replay: each leg's message of attempt 1 in attempt 2, to the server and to a site."""
    old = Round(SITES, **ROUND, round_ctx=context(attempt=1).digest())
    old.run()
    for leg in Leg:
        new = Round(SITES, **ROUND, round_ctx=context(attempt=2).digest())
        steps = (new.adverts, new.shares, new.masked, new.signed, new.run)
        receive, hit = new.receive, []

        def replaying(at, site, data, leg=leg, receive=receive, hit=hit):
            if at == leg and site == 2:
                with pytest.raises(Violation):
                    receive(at, site, old.sent[at, site])
                hit.append(site)
            return receive(at, site, data)

        new.receive = replaying
        steps[list(Leg).index(leg)]()
        assert hit == [2]
    new = Round(SITES, **ROUND, round_ctx=context(attempt=2).digest())
    deliveries = new.shares()
    assert code_of(lambda: new.clients[0].on_delivery(old.downs["delivery"][0])) in (
        "bad-signature",
        "bad-ciphertext",
    )
    assert code_of(lambda: new.clients[1].on_delivery(deliveries[0])) == "wrong-recipient"


# ---- keys and rosters

LOW_ORDER = (
    bytes(32),
    bytes((1,)) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("low", LOW_ORDER)
def test_key_substitution_with_an_all_zero_agreement(number, low):
    """A key of low order makes the agreed secret a constant that the server knows. The honest
    server refuses it at the door; a site refuses to agree on it, and names the site."""
    keys = suite(number).new_mask_keys(Csprng.from_os())
    other = suite(number).new_mask_keys(Csprng.from_os()).public
    assert code_of(lambda: suite(number).check_public(low + other[32:], other)) == "bad-key"
    sent = bytes(suite(number).contribution_size)
    assert code_of(lambda: keys.agree(1, 0, low + other[32:], sent, bytes(32))) in (
        "bad-key",
        "bad-contribution",
        "bad-ciphertext",
    )
    client = make_client(1, (0, 1, 2), suite_number=number)
    adverts = {1: Advert.decode(client.advertise())}
    for site in (0, 2):
        fake = Advert.decode(make_client(site, (0, 1, 2), suite_number=number).advertise())
        if site == 0:
            fake = dataclasses.replace(fake, share_key=low + fake.share_key[32:])
            signature = identity(0).sign("secagg advert", fake.signed(context().digest()))
            fake = dataclasses.replace(fake, signature=signature)
        adverts[site] = fake
    roster = Roster(tuple(adverts[site] for site in (0, 1, 2))).encode()
    with pytest.raises(Violation) as caught:
        client.on_roster(roster)
    assert (caught.value.code, caught.value.blame) == ("bad-key", 0)


def test_a_server_in_the_middle_cannot_put_its_keys_in():
    """Every field of an advert is signed by the site for this round."""
    rounds = Round(SITES, **ROUND)
    adverts = Roster.decode(rounds.adverts()).adverts
    for name in ("vouches", "mask_key", "share_key"):
        value = 0 if name == "vouches" else suite(1).new_mask_keys(Csprng.from_os()).public
        forged = (dataclasses.replace(adverts[0], **{name: value}), *adverts[1:])
        client = Round(SITES, **ROUND).clients[3]
        client.advertise()
        assert code_of(lambda c=client, f=forged: c.on_roster(Roster(f).encode())) in (
            "bad-signature",
            "left-out",
        )


def test_sybil_sites_and_a_changed_roster():
    """Only identities of the manifest count, each once: strangers, one identity under two indices
    and a copied advert are refused."""
    client = make_client(0, SITES)
    mine = Advert.decode(client.advertise())
    stranger = Advert.decode(make_client(9, (9, 1, 2)).advertise())
    others = [Advert.decode(make_client(s, SITES).advertise()) for s in (1, 2)]
    roster = Roster((mine, *others, stranger)).encode()
    assert code_of(lambda: client.on_roster(roster)) == "not-in-roster"
    second = make_client(0, SITES)
    second_advert = Advert.decode(second.advertise())
    twin = dataclasses.replace(others[0], site=3)
    roster = Roster((second_advert, *others, twin)).encode()
    assert code_of(lambda: second.on_roster(roster)) in ("bad-signature", "repeated-key")
    with pytest.raises(Misuse):
        make_client(0, SITES, roster=roster_of(SITES) | {4: identity(1).public})
    server = SecAggServer(
        round_ctx=context().digest(),
        roster=roster_of(SITES),
        colluders=0,
        minimum=3,
        dimension=8,
    )
    assert code_of(lambda: server.receive(stranger.encode())) == "not-in-roster"


def test_a_small_cohort_at_u1_u2_and_u3():
    """Each site holds every set against its own minimum and colluders."""
    rounds = Round(SITES, **ROUND)
    roster = Roster.decode(rounds.adverts())
    small = Roster(roster.adverts[:3]).encode()
    assert code_of(lambda: rounds.clients[0].on_roster(small)) == "cohort-too-small"
    from fedflow.secagg.messages import Delivery

    rounds = Round(SITES, **ROUND)
    deliveries = rounds.shares()
    full, cohort = Delivery.decode(deliveries[0]), rounds.clients[0]._u1
    keep = tuple(item for item in full.items if item.dealing.site in (1, 2))
    data = Delivery(0, cohort.bitmap((0, 1, 2)), keep).encode()
    assert code_of(lambda: rounds.clients[0].on_delivery(data)) == "too-few-sites"
    rounds = Round(SITES, **ROUND)
    rounds.masked()
    few = Survivors(rounds.clients[0]._u1.bitmap((0, 1, 2))).encode()
    assert code_of(lambda: rounds.clients[0].on_survivors(few)) == "too-few-sites"
