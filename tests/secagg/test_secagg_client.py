"""A site against a server that lies about the cohort or the shares, or sends garbage."""

import dataclasses

import pytest
from aggregation_rounds import Round, context, identity, make_client
from hypothesis import given, settings
from hypothesis import strategies as st
from site_checks import EVENTS, SITES, call, new_round, refused, silent

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.merkle import MerkleTree
from fedflow.errors import Misuse, Violation
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.messages import (
    Advert,
    Dealing,
    Delivery,
    Roster,
    Shares,
)
from fedflow.secagg.states import ClientState, Leg


def adverts_of(data: bytes) -> dict[int, Advert]:
    return {advert.site: advert for advert in Roster.decode(data).adverts}


def roster_bytes(adverts) -> bytes:
    return Roster(tuple(sorted(adverts, key=lambda advert: advert.site))).encode()


# -- leg 1: the roster ---------------------------------------------------------------------------


def roster_cases():
    stranger = make_client(9, (*SITES, 9), colluders=1, minimum=4).advertise()
    other_round = make_client(2, SITES, round_ctx=context(round=9).digest()).advertise()
    other_model = make_client(2, SITES, round_ctx=context(model_hash=b"x" * 32).digest())
    mine = make_client(1, SITES, csprng=Csprng.from_os()).advertise()

    def replace(which, **fields):
        return lambda a: [*(x for s, x in a.items() if s != which), _re(a[which], **fields)]

    def _re(advert, **fields):
        return dataclasses.replace(advert, **fields)

    def put(data):
        new = Advert.decode(data)
        return lambda a: [*(x for s, x in a.items() if s != new.site), new]

    def resigned_as(site, donor):
        # Site `site` colludes and advertises the donor's keys under its own valid signature.
        def change(a):
            keys = a[donor].mask_key, a[donor].share_key
            body = Advert.signed(context().digest(), site, *keys)
            signature = identity(site).sign("secagg advert", body)
            return [*(x for s, x in a.items() if s != site), Advert(site, 1, *keys, signature)]

        return change

    return {
        "key substituted": (replace(2, mask_key=b"k" * 32), "bad-signature"),
        "share key substituted": (replace(2, share_key=b"k" * 32), "bad-signature"),
        "signature of another site": (
            lambda a: replace(2, signature=a[3].signature)(a),
            "bad-signature",
        ),
        "renamed": (replace(2, site=7), "not-in-roster"),
        "stranger": (put(stranger), "not-in-roster"),
        "replayed from another round": (put(other_round), "bad-signature"),
        "advert for another model": (put(other_model.advertise()), "bad-signature"),
        "own entry replaced": (put(mine), "left-out"),
        "left out": (lambda a: [x for s, x in a.items() if s != 1], "left-out"),
        "keys copied from another site": (resigned_as(3, 2), "repeated-key"),
        "fewer than the minimum": (lambda a: [a[1], a[2], a[3]], "cohort-too-small"),
        "two sites": (lambda a: [a[1], a[2]], "cohort-size"),
        "nobody": (lambda a: [], "cohort-size"),
    }


@pytest.mark.parametrize("name", roster_cases())
def test_a_forged_roster_is_refused(name):
    change, code = roster_cases()[name]
    round_ = new_round()
    adverts = adverts_of(round_.adverts())
    client = round_.clients[1]
    refused(client, lambda: client.on_roster(roster_bytes(change(adverts))), code)


@pytest.mark.parametrize("order", [(2, 1, 3, 4, 5, 6), (1, 1, 2, 3, 4, 5)])
def test_a_roster_out_of_order_or_doubled_is_refused(order):
    round_ = new_round()
    adverts = adverts_of(round_.adverts())
    data = Roster(tuple(adverts[s] for s in order)).encode()
    client = round_.clients[1]
    refused(client, lambda: client.on_roster(data), "not-ascending")


def test_an_unknown_suite_is_refused():
    round_ = new_round()
    adverts = adverts_of(round_.adverts())
    changed = [*(a for a in adverts.values() if a.site != 2)]
    changed.append(dataclasses.replace(adverts[2], suite=2))
    client = round_.clients[1]
    refused(client, lambda: client.on_roster(roster_bytes(changed)), "unknown-suite")


def test_a_low_order_key_names_its_owner():
    round_ = new_round()
    adverts = adverts_of(round_.adverts())
    for field in ("mask_key", "share_key"):
        keys = {"mask_key": adverts[2].mask_key, "share_key": adverts[2].share_key}
        keys[field] = bytes(32)
        body = Advert.signed(context().digest(), 2, **keys)
        signature = identity(2).sign("secagg advert", body)
        bad = Advert(2, 1, **keys, signature=signature)
        data = roster_bytes([*(a for a in adverts.values() if a.site != 2), bad])
        client = make_client(1, SITES, colluders=1, minimum=4)
        client.advertise()
        assert refused(client, lambda c=client, d=data: c.on_roster(d), "bad-key").blame == 2


@pytest.mark.parametrize(("colluders", "minimum"), [(1, 7), (5, 4), (0, 7)])
def test_thresholds_are_the_sites_own(colluders, minimum):
    # The server is content with this cohort; the site's policy is not.
    round_ = new_round()
    data = round_.adverts()
    strict = make_client(1, SITES, colluders=colluders, minimum=minimum)
    strict._advert = round_.clients[1]._advert
    strict.state = ClientState.ADVERTISED
    refused(strict, lambda: strict.on_roster(data), "cohort-too-small", "too-many-colluders")


# -- leg 2: the delivery -------------------------------------------------------------------------


def redealt(round_: Round, dealer: int, change) -> bytes:
    """Delivery for site 1 in which ``dealer`` really signed what ``change`` makes of its share."""
    shares = Shares.decode(round_.sent[Leg.SHARES, dealer])
    ctx = round_.clients[1].context
    sealed = [
        dataclasses.replace(s, sealed=change(s.sealed)) if s.recipient == 1 else s
        for s in shares.shares
    ]
    tree = MerkleTree([s.leaf() for s in sealed])
    body = Dealing.signed(ctx, dealer, shares.dealing.commitment, tree.root)
    signature = identity(dealer).sign("secagg shares", body)
    dealing = Dealing(dealer, shares.dealing.commitment, tree.root, signature)
    delivery = Delivery.decode(round_.downs["delivery"][1])
    items = tuple(
        dataclasses.replace(item, dealing=dealing, sealed=sealed[0].sealed, path=tree.path(0))
        if item.dealing.site == dealer
        else item
        for item in delivery.items
    )
    return Delivery(1, items).encode()


DELIVERY_CASES = {
    "for another site": (lambda d, r: Delivery.decode(r.downs["delivery"][2]), "wrong-recipient"),
    "too few dealers": (lambda d, r: Delivery(1, d.items[:2]), "too-few-sites"),
    "nobody": (lambda d, r: Delivery(1, ()), "too-few-sites"),
    "own share": (
        lambda d, r: Delivery(1, (Delivery.decode(r.downs["delivery"][2]).items[0], *d.items)),
        "bad-dealers",
    ),
    "doubled dealer": (lambda d, r: Delivery(1, (d.items[0], *d.items)), "not-ascending"),
    "renamed recipient": (
        lambda d, r: Delivery(1, (Delivery.decode(r.downs["delivery"][3]).items[1], *d.items[1:])),
        "bad-path",
    ),
    "ciphertext changed": (
        lambda d, r: _with_item(d, sealed=bytes(82)),
        "bad-path",
    ),
    "path dropped": (lambda d, r: _with_item(d, path=()), "bad-path"),
    "commitment changed": (
        lambda d, r: _with_item(d, dealing=dataclasses.replace(d.items[0].dealing, root=bytes(32))),
        "bad-signature",
    ),
    "dealer renamed": (
        lambda d, r: Delivery(
            1,
            (
                *d.items[:4],
                dataclasses.replace(
                    d.items[4], dealing=dataclasses.replace(d.items[4].dealing, site=60)
                ),
            ),
        ),
        "not-in-cohort",
    ),
}


def _with_item(delivery: Delivery, **fields) -> Delivery:
    first = dataclasses.replace(delivery.items[0], **fields)
    return Delivery(delivery.recipient, (first, *delivery.items[1:]))


@pytest.mark.parametrize("name", DELIVERY_CASES)
def test_a_forged_delivery_is_refused_and_blames_nobody(name):
    change, code = DELIVERY_CASES[name]
    round_ = new_round()
    delivery = Delivery.decode(round_.shares()[1])
    client = round_.clients[1]
    data = change(delivery, round_).encode()
    assert refused(client, lambda: client.on_delivery(data), code).blame is None


@pytest.mark.parametrize("change", [lambda s: bytes(82), lambda s: s[:-1] + bytes([s[-1] ^ 1])])
def test_a_share_that_does_not_open_blames_its_dealer(change):
    round_ = new_round()
    round_.shares()
    client = round_.clients[1]
    data = redealt(round_, 3, change)
    assert refused(client, lambda: client.on_delivery(data), "bad-ciphertext").blame == 3


def test_a_share_from_another_round_is_refused():
    first = new_round()
    other = new_round(round_ctx=context(round=4).digest())
    old = other.shares()[1]
    first.shares()
    client = first.clients[1]
    refused(client, lambda: client.on_delivery(old), "bad-signature")


def test_nothing_is_masked_before_every_share_opened():
    round_ = new_round()
    round_.shares()
    with pytest.raises(Misuse):
        round_.clients[1].mask(round_.vectors[1])


# -- order and garbage ---------------------------------------------------------------------------


@pytest.mark.parametrize("event", EVENTS[1:])
def test_calls_out_of_order_are_misuse_and_change_nothing(event):
    client = make_client(1, SITES)
    with pytest.raises(Misuse, match="possible now: advertise"):
        call(client, event)
    assert client.state == ClientState.START
    client.advertise()
    with pytest.raises(Misuse):
        client.advertise()


@pytest.fixture(scope="module")
def honest() -> dict[str, bytes]:
    round_ = new_round()
    round_.run()
    return {
        "on_roster": round_.downs["roster"],
        "on_delivery": round_.downs["delivery"][1],
        "on_survivors": round_.downs["survivors"],
        "on_consistency": round_.downs["consistency"],
    }


def at(event: str) -> SecAggClient:
    """A site that waits for ``event`` in the same deterministic round."""
    round_ = new_round()
    {
        "on_roster": round_.adverts,
        "on_delivery": round_.shares,
        "on_survivors": round_.masked,
        "on_consistency": round_.signed,
    }[event]()
    return round_.clients[1]


@pytest.mark.parametrize("event", ["on_roster", "on_delivery", "on_survivors", "on_consistency"])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_no_changed_message_is_anything_but_a_violation(event, honest, data):
    """Whatever bytes arrive: accepted means unchanged (or another valid set), else Violation."""
    good = honest[event]
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
        bad = data.draw(st.binary(max_size=200))
    client = at(event)
    try:
        getattr(client, event)(bad)
    except Violation:
        silent(client)
    else:
        # A bitmap may be flipped into another set that is large enough to sign.
        assert event == "on_survivors"
        assert len(client.survivors) >= 4
