"""The server against sites that lie, come late, or send garbage: the round goes on without them."""

import dataclasses

import numpy as np
import pytest
from aggregation_rounds import Round, context, identity, make_client
from hypothesis import given, settings
from hypothesis import strategies as st
from site_checks import SITES, new_round

from fedflow.crypto.agreement import KeyPair
from fedflow.crypto.merkle import MerkleTree
from fedflow.errors import Aborted, Misuse, Violation
from fedflow.secagg.messages import (
    PAIR_MASK,
    SELF_MASK,
    Advert,
    Dealing,
    Masked,
    Reveal,
    Shares,
    Signed,
    Unmask,
    vector_hash,
)
from fedflow.secagg.server import SecAggServer
from fedflow.secagg.states import LEGS, Leg


def refused(server: SecAggServer, data: bytes, *codes: str) -> Violation:
    state = server.state, server.missing(), server._sum.tobytes()
    with pytest.raises(Violation) as caught:
        server.receive(data)
    assert caught.value.code in codes, caught.value.code
    assert state == (server.state, server.missing(), server._sum.tobytes())
    return caught.value


def resigned_shares(round_: Round, site: int, change) -> bytes:
    """Shares of ``site``, changed, with a valid dealing over the changed list."""
    shares = Shares.decode(round_.clients[site].on_roster(round_.downs["roster"]))
    sealed = tuple(change(shares.shares))
    root = MerkleTree([share.leaf() for share in sealed]).root
    ctx, commitment = round_.clients[site].context, shares.dealing.commitment
    signature = identity(site).sign("secagg shares", Dealing.signed(ctx, site, commitment, root))
    return Shares(Dealing(site, commitment, root, signature), sealed).encode()


def masked_by(round_: Round, site: int, vector: bytes, delivered: bytes | None = None) -> bytes:
    ctx = round_.clients[site].context
    if delivered is None:
        delivered = Masked.decode(round_.sent[Leg.MASKED, site]).delivered
    body = Masked.signed(ctx, site, delivered, vector_hash(vector))
    return Masked(site, delivered, vector, identity(site).sign("secagg masked", body)).encode()


def test_adverts_of_strangers_other_rounds_or_copied_keys_are_refused():
    round_ = new_round()
    stranger = make_client(50, (50, 51, 52)).advertise()
    refused(round_.server, stranger, "not-in-roster")
    other = make_client(2, SITES, round_ctx=context(kind=2).digest()).advertise()
    refused(round_.server, other, "bad-signature")
    round_.server.receive(round_.clients[1].advertise())
    mine = round_.clients[1]._advert

    def advert(mask_key, share_key):
        body = Advert.signed(round_.round_ctx, 2, mask_key, share_key)
        return Advert(2, 1, mask_key, share_key, identity(2).sign("secagg advert", body)).encode()

    fresh = KeyPair(b"f" * 32).public
    refused(round_.server, advert(mine.share_key, fresh), "repeated-key")
    refused(round_.server, advert(fresh, fresh), "repeated-key")
    assert refused(round_.server, advert(fresh, bytes(32)), "bad-key").blame == 2
    assert refused(round_.server, advert(bytes(32), fresh), "bad-key").blame == 2
    round_.server.receive(round_.clients[2].advertise())


def test_shares_must_be_for_exactly_the_rest_of_the_cohort():
    round_ = new_round()
    round_.adverts()
    few = resigned_shares(round_, 1, lambda shares: shares[:-1])
    refused(round_.server, few, "bad-recipients")
    other = resigned_shares(
        round_, 2, lambda s: [*s[:-1], dataclasses.replace(s[-1], recipient=60)]
    )
    refused(round_.server, other, "bad-recipients")
    shares = Shares.decode(round_.clients[3].on_roster(round_.downs["roster"]))
    swapped = dataclasses.replace(shares.shares[0], sealed=shares.shares[1].sealed)
    unsigned = Shares(shares.dealing, (swapped, *shares.shares[1:]))
    refused(round_.server, unsigned.encode(), "bad-root")
    forged = dataclasses.replace(shares.dealing, commitment=bytes(32))
    refused(round_.server, Shares(forged, shares.shares).encode(), "bad-signature")
    round_.server.receive(shares.encode())


def test_masked_vectors_are_checked_before_they_touch_the_sum():
    round_ = new_round(drops={Leg.MASKED: [6]})
    deliveries = round_.shares()
    for site in (1, 2, 3, 4, 5):
        round_.clients[site].on_delivery(deliveries[site])
        round_.sent[Leg.MASKED, site] = round_.clients[site].mask(round_.vectors[site])
    good = round_.sent[Leg.MASKED, 1]
    message = Masked.decode(good)
    refused(round_.server, masked_by(round_, 1, message.vector[:-4]), "bad-length")
    refused(round_.server, masked_by(round_, 1, message.vector + bytes(4)), "bad-length")
    refused(round_.server, masked_by(round_, 1, message.vector, bytes(32)), "other-delivery")
    flipped = bytes([message.vector[0] ^ 1]) + message.vector[1:]
    forged = dataclasses.replace(message, vector=flipped).encode()
    refused(round_.server, forged, "bad-signature")
    refused(round_.server, dataclasses.replace(message, site=2).encode(), "bad-signature")
    round_.server.receive(good)
    # A site that signs a second vector does not get it added as well.
    refused(round_.server, masked_by(round_, 1, flipped), "duplicate")
    assert np.array_equal(round_.server._sum, np.frombuffer(message.vector, "<u4"))


def test_identical_copies_are_accepted_silently_at_any_time():
    round_ = new_round()
    outcome = round_.run()
    before = outcome.sum.copy()
    for (leg, site), data in round_.sent.items():
        assert round_.server.receive(data) == (leg, site)
    assert np.array_equal(round_.server._sum, before)


def test_messages_of_closed_and_future_legs_are_named_so():
    done = new_round(drops={Leg.MASKED: [6]})
    done.run()
    round_ = new_round()
    refused(round_.server, done.sent[Leg.MASKED, 1], "early-message")
    late = new_round(drops={Leg.ADVERT: [6]})
    late.adverts()
    refused(late.server, late.clients[6].advertise(), "late-message")
    refused(done.server, make_client(6, SITES).advertise()[:-1] + b"x", "late-message")
    other = new_round(round_ctx=b"z" * 32)
    other.run()
    for leg in LEGS:
        refused(done.server, other.sent[leg, 1], "late-message")


def test_a_site_outside_the_leg_is_not_awaited():
    round_ = new_round(drops={Leg.SHARES: [6]})
    round_.shares()
    ctx = round_.clients[1].context
    body = Masked.signed(ctx, 6, bytes(32), vector_hash(bytes(32)))
    data = Masked(6, bytes(32), bytes(32), identity(6).sign("secagg masked", body)).encode()
    refused(round_.server, data, "not-awaited")


def test_a_signature_on_another_survivor_set_is_not_collected():
    round_ = new_round()
    round_.masked()
    body = Signed.signed(round_.clients[1].context, bytes(32), bytes(32))
    data = Signed(1, identity(1).sign("secagg survivors", body)).encode()
    refused(round_.server, data, "bad-signature")


def answer_of(round_: Round, site: int, change, signer: int | None = None) -> bytes:
    """The answer of ``site`` with its reveals changed and signed again."""
    answer = Unmask.decode(round_.clients[site].on_consistency(round_.downs["consistency"]))
    reveals = tuple(change(r) for r in answer.reveals)
    client = round_.clients[site]
    digest = client._u1.set_hash("survivors", client.survivors)
    body = Unmask.signed(client.context, site, digest, reveals)
    key = identity(site if signer is None else signer)
    return Unmask(site, reveals, key.sign("secagg unmask", body)).encode()


def test_an_answer_of_the_wrong_shape_blames_its_signer():
    round_ = new_round(drops={Leg.MASKED: [6]})
    round_.signed()
    flip = {SELF_MASK: PAIR_MASK, PAIR_MASK: SELF_MASK}
    both = answer_of(
        round_, 1, lambda r: Reveal(r.site, flip[r.kind] if r.site == 6 else r.kind, r.share)
    )
    assert refused(round_.server, both, "bad-reveal").blame == 1
    renamed = answer_of(round_, 1, lambda r: dataclasses.replace(r, site=7) if r.site == 6 else r)
    assert refused(round_.server, renamed, "bad-reveal").blame == 1
    refused(round_.server, answer_of(round_, 1, lambda r: r, signer=2), "bad-signature")


def run_with_answers(round_: Round, liars: dict) -> object:
    round_.signed()
    for site in round_.alive:
        round_.server.receive(answer_of(round_, site, liars.get(site, lambda r: r)))
    return round_.server.close_unmask()


def garbage(reveal: Reveal) -> Reveal:
    value = int.from_bytes(reveal.share, "big") ^ 0xDEADBEEF << 64
    return dataclasses.replace(reveal, share=value.to_bytes(33, "big"))


@pytest.mark.parametrize("liar", SITES[:5])
def test_a_site_that_answers_with_wrong_shares_is_named_and_does_no_harm(liar):
    round_ = new_round(drops={Leg.MASKED: [6]})
    outcome = run_with_answers(round_, {liar: garbage})
    assert np.array_equal(outcome.sum, round_.plain_sum(SITES[:5]))
    assert set(outcome.suspects) <= {liar}
    assert (liar in outcome.suspects) == (liar != 5)  # the last one's shares were not needed


def test_a_share_outside_the_field_is_named():
    round_ = new_round()
    outcome = run_with_answers(round_, {3: lambda r: dataclasses.replace(r, share=b"\xff" * 33)})
    assert outcome.suspects == (3,)
    assert np.array_equal(outcome.sum, round_.plain_sum(SITES))


def test_too_many_wrong_answers_abort_instead_of_a_wrong_sum():
    round_ = new_round()
    with pytest.raises(Aborted) as caught:
        run_with_answers(round_, {1: garbage, 2: garbage, 3: garbage})
    assert caught.value.code == "unrecoverable"
    with pytest.raises(Misuse):
        round_.server.close_unmask()


def test_a_dealer_that_commits_to_another_seed_aborts_and_is_named():
    round_ = new_round()
    round_.adverts()
    for site in SITES:
        shares = Shares.decode(round_.clients[site].on_roster(round_.downs["roster"]))
        if site == 4:
            ctx, root = round_.clients[4].context, shares.dealing.root
            body = Dealing.signed(ctx, 4, b"x" * 32, root)
            dealing = Dealing(4, b"x" * 32, root, identity(4).sign("secagg shares", body))
            shares = Shares(dealing, shares.shares)
        round_.server.receive(shares.encode())
    deliveries = round_.server.close_shares()
    for site in SITES:
        round_.clients[site].on_delivery(deliveries[site])
        round_.server.receive(round_.clients[site].mask(round_.vectors[site]))
    survivors = round_.server.close_masked()
    for site in SITES:
        round_.server.receive(round_.clients[site].on_survivors(survivors))
    consistency = round_.server.close_signatures()
    for site in SITES:
        round_.server.receive(round_.clients[site].on_consistency(consistency))
    with pytest.raises(Aborted, match="site 4"):
        round_.server.close_unmask()


def test_closing_out_of_order_is_misuse():
    round_ = new_round()
    for close in ("close_shares", "close_masked", "close_signatures", "close_unmask"):
        with pytest.raises(Misuse, match="close_adverts"):
            getattr(round_.server, close)()


@pytest.mark.parametrize("leg", LEGS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_no_bytes_make_the_server_raise_anything_but_a_violation(leg, data):
    round_, good = _waiting(leg)
    how = data.draw(st.sampled_from(["flip", "cut", "extend", "random"]))
    if how == "flip":
        where = data.draw(st.integers(0, 8 * len(good) - 1))
        changed = bytearray(good)
        changed[where // 8] ^= 1 << where % 8
        bad = bytes(changed)
    elif how == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif how == "extend":
        bad = good + data.draw(st.binary(min_size=1, max_size=5))
    else:
        bad = data.draw(st.binary(max_size=300))
    state = round_.server.state, round_.server.missing()
    with pytest.raises(Violation):
        round_.server.receive(bad)
    assert state == (round_.server.state, round_.server.missing())
    assert round_.server.receive(good) == (leg, 1)


def _waiting(leg: Leg) -> tuple[Round, bytes]:
    """A server that waits for ``leg``, and the honest message of site 1 for it."""
    round_ = new_round()
    client = round_.clients[1]
    if leg == Leg.ADVERT:
        return round_, client.advertise()
    if leg == Leg.SHARES:
        return round_, client.on_roster(round_.adverts())
    if leg == Leg.MASKED:
        client.on_delivery(round_.shares()[1])
        return round_, client.mask(round_.vectors[1])
    if leg == Leg.SIGNED:
        return round_, client.on_survivors(round_.masked())
    return round_, client.on_consistency(round_.signed())
