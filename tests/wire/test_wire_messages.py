"""Job messages and signatures: canonical, checked, and one label each."""

import contextlib
import dataclasses
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedflow.crypto.identity import Identity
from fedflow.errors import Misuse, Violation
from fedflow.exchange import layout
from fedflow.wire.messages import (
    MAX_SITES,
    Countersignature,
    Decline,
    Hello,
    JobEnd,
    Kind,
    Manifest,
    Order,
    RosterEntry,
    labelled_hash,
    leaves_job,
)
from fedflow.wire.sealed import MAX_BODY_BYTES, Sealed, peek, seal, unseal

KEY = Identity.generate()
H = bytes(range(32))


def roster(*entries):
    return tuple(RosterEntry(i, bytes([i, n]) * 16, label) for n, (i, label) in enumerate(entries))


def manifest(**changes):
    fields = {
        "job": "job-1",
        "coordinator": H,
        "roster": roster((0, "a"), (1, "b"), (7, "site-c")),
        "colluders": 1,
        "minimum": 3,
        "dimension": 10,
        "model_spec": H,
        "initial_model": H,
        "value_range": 8.0,
        "plan": b"{}",
        "created": 5,
        "not_after": 6,
    }
    return Manifest(**(fields | changes))


def order(**changes):
    fields = {
        "manifest": H,
        "sequence": 1,
        "round": 1,
        "attempt": 1,
        "kind": 1,
        "model": H,
        "previous": H,
        "value_range": 0.5,
        "dimension": 1,
        "deadline": 9,
        "invited": (0, 2),
    }
    return Order(**(fields | changes))


EXAMPLES = [
    manifest(),
    Countersignature(H, 3),
    order(),
    Hello(H, 3, H),
    Decline(H, 3, "policy", "ε is 3, at most 2 is allowed", (0, 1, 65_535)),
    JobEnd(H, 4, "completed", "", H),
]


@pytest.mark.parametrize(
    "message", [*EXAMPLES, RosterEntry(0, H, "a")], ids=lambda m: type(m).__name__
)
def test_every_message_has_one_encoding(message):
    data = message.encode()
    assert type(message).decode(data) == message
    for other in [data[:-1], data + b"\0", data[1:], b""]:
        with pytest.raises(Violation):
            type(message).decode(other)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
@given(junk=st.binary(max_size=300))
@settings(max_examples=30)
def test_garbage_under_every_type_number(message, junk):
    kind = type(message)
    data = bytes((kind.TYPE, kind.VERSION)) + junk
    with contextlib.suppress(Violation):
        assert kind.decode(data).encode() == data


def test_type_numbers_and_seals_are_distinct():
    assert len({type(m).TYPE for m in EXAMPLES}) == len(EXAMPLES)
    assert len({type(m).SEAL for m in EXAMPLES}) == len(EXAMPLES)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (manifest(job="Job"), "bad-job-id"),
        (manifest(job=""), "bad-job-id"),
        (manifest(job="../x"), "bad-job-id"),
        (Decline(H, 3, "ledger-rollback", "", (2, 1)), "not-ascending"),
        (Decline(H, 3, "ledger-rollback", "", (1, 1)), "not-ascending"),
        (manifest(roster=roster((1, "a"), (0, "b"))), "bad-roster"),
        (manifest(roster=roster((1, "a"), (1, "b"))), "bad-roster"),
        (manifest(roster=roster((0, "a"), (1, "a"))), "bad-roster"),
        (manifest(roster=(RosterEntry(0, H, "a"), RosterEntry(1, H, "b"))), "bad-roster"),
        (manifest(roster=roster((0, "A"))), "bad-label"),
        (manifest(roster=roster((0, "a b"))), "bad-label"),
        (manifest(created=6), "bad-manifest"),
        (manifest(value_range=0.0), "bad-manifest"),
        (manifest(value_range=-1.0), "bad-manifest"),
        (order(kind=0), "bad-order"),
        (order(invited=(2, 1)), "not-ascending"),
        (order(invited=(1, 1)), "not-ascending"),
        (order(sequence=0), "bad-order"),
        (order(round=0), "bad-order"),
        (order(attempt=0), "bad-order"),
        (order(dimension=0), "bad-order"),
        (order(value_range=0.0), "bad-order"),
        (order(value_range=-8.0), "bad-order"),
    ],
)
def test_messages_that_make_no_sense_are_refused_on_reading(bad, code):
    with pytest.raises(Violation) as caught:
        type(bad).decode(bad.encode())
    assert caught.value.code == code


def test_a_kind_beyond_the_known_ones_is_refused():
    data = order().encode()
    at = 2 + 32 + 4 + 4 + 2
    with pytest.raises(Violation) as caught:
        Order.decode(data[:at] + b"\x03" + data[at + 1 :])
    assert caught.value.code == "out-of-range"


def test_too_many_sites_are_refused_before_they_are_read():
    data = manifest().encode()
    at = data.index((3).to_bytes(4, "big"))
    with pytest.raises(Violation) as caught:
        Manifest.decode(data[:at] + (MAX_SITES + 1).to_bytes(4, "big") + data[at + 4 :])
    assert caught.value.code == "too-long"


@pytest.mark.parametrize("kind", [Manifest, Order])
def test_every_field_is_in_the_hash(kind):
    one = manifest() if kind is Manifest else order()
    seen = {one.digest()}
    for field in dataclasses.fields(one):
        value = getattr(one, field.name)
        if isinstance(value, int | float):
            other = value + 1
        elif isinstance(value, bytes):
            other = bytes([value[0] ^ 1]) + value[1:]
        elif isinstance(value, str):
            other = value + "x"
        else:
            other = value[1:]
        seen.add(dataclasses.replace(one, **{field.name: other}).digest())
    assert len(seen) == 1 + len(dataclasses.fields(one))


def test_hashes_of_different_labels_never_meet():
    assert labelled_hash("order", b"x") != labelled_hash("orde", b"r\0x")
    assert labelled_hash("order", b"x") != labelled_hash("manifest", b"x")


# ---- signatures


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_sealed_message_opens_for_its_signer_only(message):
    data = seal(KEY, message)
    assert unseal(type(message), data, KEY.public) == message
    assert peek(type(message), data) == message
    with pytest.raises(Violation) as caught:
        unseal(type(message), data, Identity.generate().public)
    assert caught.value.code == "bad-signature"


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_signature_under_another_label_does_not_count(message):
    """Even on the same bytes: what was signed as one kind is not signed as another."""
    body = message.encode()
    for other in EXAMPLES:
        if type(other) is type(message):
            continue
        crossed = Sealed(body, KEY.sign(type(other).SEAL, body)).encode()
        with pytest.raises(Violation):
            unseal(type(message), crossed, KEY.public)
        with pytest.raises(Violation):
            unseal(type(other), seal(KEY, message), KEY.public)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_changed_bit_breaks_a_sealed_message(at, bit):
    data = bytearray(SEALED)
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(Violation):
        unseal(Order, bytes(data), KEY.public)


@given(st.binary(max_size=300))
def test_garbage_is_not_a_sealed_message(data):
    with pytest.raises(Violation):
        unseal(Order, data, KEY.public)


def test_a_sealed_body_has_a_limit():
    data = bytes((8, 1)) + (MAX_BODY_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(Violation) as caught:
        Sealed.decode(data)
    assert caught.value.code == "too-long"


def test_the_largest_federation_fits_into_a_manifest_that_can_be_signed():
    sites = tuple(
        RosterEntry(i, i.to_bytes(2, "big") * 16, f"s{i:05d}" + "x" * 26) for i in range(MAX_SITES)
    )
    large = manifest(roster=sites, plan=b"p" * 65_536, not_after=int(time.time()))
    data = seal(KEY, large)
    assert len(data) < layout.MAX_MANIFEST_BYTES
    assert unseal(Manifest, data, KEY.public) == large


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -0.0])
def test_a_range_is_a_plain_number(bad):
    with pytest.raises(Misuse):
        order(value_range=bad).encode()
    data = order(value_range=8.0).encode()
    at = data.index(struct.pack(">d", 8.0))
    with pytest.raises(Violation) as caught:
        Order.decode(data[:at] + struct.pack(">d", bad) + data[at + 8 :])
    assert caught.value.code == "out-of-range"


def test_only_a_training_order_without_budget_ends_a_sites_part():
    assert leaves_job(Kind.TRAIN, "budget-exhausted")
    assert not leaves_job(Kind.EVALUATE, "budget-exhausted")
    assert not leaves_job(Kind.TRAIN, "policy")


SEALED = seal(KEY, order())
