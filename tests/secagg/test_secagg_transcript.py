"""A transcript changed anywhere is refused, and the sum can be recomputed from what is left."""

import dataclasses
import hashlib

import numpy as np
import pytest
from aggregation_rounds import context, identity, roster_of
from hypothesis import given, settings
from hypothesis import strategies as st
from site_checks import SITES, new_round

from fedflow.crypto.agreement import KeyPair
from fedflow.errors import Violation
from fedflow.secagg.messages import Masked, Signed, vector_hash
from fedflow.secagg.states import Leg
from fedflow.secagg.transcript import (
    RevealedSecret,
    Transcript,
    masked_vector,
    recompute_sum,
    verify_transcript,
)


@pytest.fixture(scope="module")
def finished():
    round_ = new_round(drops={Leg.SHARES: [6], Leg.MASKED: [2]})
    return round_, round_.run()


def verify(transcript, **changes):
    arguments = {
        "round_ctx": context().digest(),
        "roster": roster_of(SITES),
        "colluders": 1,
        "minimum": 4,
        **changes,
    }
    verify_transcript(transcript, **arguments)


def test_an_honest_transcript_verifies_and_gives_the_sum(finished):
    round_, outcome = finished
    transcript = Transcript.decode(outcome.transcript.encode())
    verify(transcript)
    assert transcript == outcome.transcript
    assert transcript.cohort == SITES
    assert transcript.delivered == (1, 2, 3, 4, 5)
    assert transcript.survivors == (1, 3, 4, 5)
    total = recompute_sum(transcript, round_.masked_messages())
    assert np.array_equal(total, outcome.sum)
    assert np.array_equal(total, round_.plain_sum((1, 3, 4, 5)))


def test_the_digest_is_over_the_encoding(finished):
    transcript = finished[1].transcript
    expected = hashlib.sha256(b"fedflow/1 transcript\0" + transcript.encode()).digest()
    assert transcript.digest() == expected


def test_no_secret_shows_in_its_representation(finished):
    transcript = finished[1].transcript
    text = repr(transcript)
    for entry in transcript.secrets:
        assert entry.secret.hex() not in text
        assert repr(entry.secret)[2:-1] not in text


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round_ctx": b"x" * 32}, "other-round"),
        ({"minimum": 5}, "too-few-sites"),
        ({"minimum": 7}, "cohort-too-small"),
        ({"colluders": 3}, "too-few-sites"),
        ({"colluders": 5}, "too-many-colluders"),
        ({"roster": roster_of((1, 2, 3, 4, 5))}, "not-in-roster"),
        ({"roster": {**roster_of(SITES), 3: identity(9).public}}, "bad-signature"),
    ],
)
def test_the_checker_uses_its_own_facts(finished, changes, code):
    with pytest.raises(Violation) as caught:
        verify(finished[1].transcript, **changes)
    assert caught.value.code == code


def check_all(data, messages):
    transcript = Transcript.decode(data)
    verify(transcript)
    recompute_sum(transcript, messages)


def change_entry(name, at, **fields):
    def change(t):
        entries = list(getattr(t, name))
        entries[at] = dataclasses.replace(entries[at], **fields)
        return dataclasses.replace(t, **{name: tuple(entries)})

    return change


def drop_entry(name, at):
    return lambda t: dataclasses.replace(
        t, **{name: tuple(e for i, e in enumerate(getattr(t, name)) if i != at)}
    )


CASES = {
    "advert key": (change_entry("adverts", 0, mask_key=b"k" * 32), {"bad-signature"}),
    "advert dropped": (drop_entry("adverts", 5), {"bad-signature"}),
    "advert of a dealer dropped": (drop_entry("adverts", 0), {"bad-sets"}),
    "commitment": (change_entry("dealings", 0, commitment=bytes(32)), {"bad-signature"}),
    "root": (change_entry("dealings", 0, root=bytes(32)), {"bad-signature"}),
    "dealing dropped": (drop_entry("dealings", 1), {"bad-sets"}),
    "masked hash": (change_entry("masked", 0, digest=bytes(32)), {"bad-signature"}),
    "masked signature": (change_entry("masked", 0, signature=bytes(64)), {"bad-signature"}),
    "survivor dropped": (drop_entry("masked", 0), {"too-few-sites"}),
    "survivor renamed": (change_entry("masked", 0, site=2), {"bad-signature"}),
    "survivor from nowhere": (change_entry("masked", 3, site=6), {"bad-sets"}),
    "signature": (change_entry("signatures", 0, signature=bytes(64)), {"bad-signature"}),
    "signature dropped": (drop_entry("signatures", 0), {"too-few-signatures"}),
    "signer renamed": (change_entry("signatures", 0, site=2), {"bad-signers"}),
    "seed": (change_entry("secrets", 0, secret=bytes(32)), {"bad-secret"}),
    "mask key": (change_entry("secrets", 1, secret=bytes(32)), {"bad-secret"}),
    "secret dropped": (drop_entry("secrets", 1), {"bad-sets"}),
    "secret of another": (change_entry("secrets", 4, site=6), {"bad-sets"}),
    "out of order": (
        lambda t: dataclasses.replace(t, masked=t.masked[::-1]),
        {"not-ascending"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_changed_transcript_is_refused(finished, name):
    change, codes = CASES[name]
    with pytest.raises(Violation) as caught:
        verify(change(finished[1].transcript))
    assert caught.value.code in codes


def test_a_survivor_left_out_of_the_sum_is_noticed(finished):
    """Dropping one of five survivors leaves enough sites, but the others signed five."""
    round_ = new_round()
    transcript = round_.run().transcript
    last = transcript.survivors[-1]
    shorter = dataclasses.replace(
        transcript,
        masked=transcript.masked[:-1],
        signatures=tuple(s for s in transcript.signatures if s.site != last),
        secrets=(
            *transcript.secrets[:-1],
            RevealedSecret(last, bytes(32)),
        ),
    )
    with pytest.raises(Violation) as caught:
        verify(shorter)
    assert caught.value.code == "bad-signature"


def test_signatures_of_colluders_on_a_second_set_are_too_few(finished):
    transcript = finished[1].transcript
    body = Signed.signed(transcript.context(), bytes(32), bytes(32))
    forged = Signed(1, identity(1).sign("secagg survivors", body))
    changed = dataclasses.replace(transcript, signatures=(forged, *transcript.signatures[1:]))
    with pytest.raises(Violation, match="signature"):
        verify(changed)


@pytest.mark.parametrize("bit", [0, 1, 2, 254, 255])
def test_a_mask_key_has_one_form(finished, bit):
    """X25519 ignores five bits of a private key; a transcript that differs there is refused."""
    entry = finished[1].transcript.secrets[1]
    assert entry.site == 2
    secret = bytearray(entry.secret)
    secret[bit // 8] ^= 1 << bit % 8
    assert KeyPair(bytes(secret)).public == KeyPair(entry.secret).public
    with pytest.raises(Violation) as caught:
        verify(change_entry("secrets", 1, secret=bytes(secret))(finished[1].transcript))
    assert caught.value.code == "bad-secret"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_flipped_bit_survives_verification(finished, data):
    round_, outcome = finished
    good = outcome.transcript.encode()
    where = data.draw(st.integers(0, 8 * len(good) - 1))
    changed = bytearray(good)
    changed[where // 8] ^= 1 << where % 8
    with pytest.raises(Violation):
        check_all(bytes(changed), round_.masked_messages())


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_recomputing_an_unverified_transcript_is_a_violation_at_worst(finished, data):
    round_, outcome = finished
    good = outcome.transcript.encode()
    where = data.draw(st.integers(0, 8 * len(good) - 1))
    changed = bytearray(good)
    changed[where // 8] ^= 1 << where % 8
    try:
        total = recompute_sum(Transcript.decode(bytes(changed)), round_.masked_messages())
    except Violation:
        return
    assert np.array_equal(total, outcome.sum)


def test_a_vector_that_is_missing_changed_or_swapped_is_noticed(finished):
    round_, outcome = finished
    messages = round_.masked_messages()
    one = Masked.decode(messages[1])
    flipped = bytes([one.vector[0] ^ 1]) + one.vector[1:]
    ctx = outcome.transcript.context()
    resigned = Masked.signed(ctx, 1, one.delivered, vector_hash(flipped))
    cases = {
        "missing-vector": {s: m for s, m in messages.items() if s != 1},
        "other-vector": {**messages, 1: dataclasses.replace(one, vector=flipped).encode()},
        "wrong-type": {**messages, 1: b"\0\1"},
        "truncated": {**messages, 1: messages[1][:-1]},
    }
    swapped = {**messages, 1: messages[3]}
    signed_again = dataclasses.replace(
        one, vector=flipped, signature=identity(1).sign("secagg masked", resigned)
    )
    for code, stored in (
        *cases.items(),
        ("other-vector", swapped),
        ("other-vector", {**messages, 1: signed_again.encode()}),
        ("other-vector", {**messages, 1: dataclasses.replace(one, vector=b"").encode()}),
    ):
        with pytest.raises(Violation) as caught:
            recompute_sum(outcome.transcript, stored)
        assert caught.value.code == code


def test_a_wrong_announced_sum_is_noticed(finished):
    round_, outcome = finished
    wrong = outcome.sum.copy()
    wrong[0] += 1
    lie = dataclasses.replace(outcome.transcript, sum_hash=vector_hash(wrong.tobytes()))
    verify(lie)  # its parts hold together: only the vectors can tell
    with pytest.raises(Violation) as caught:
        recompute_sum(lie, round_.masked_messages())
    assert caught.value.code == "wrong-sum"


def test_masked_vectors_read_back_and_are_read_only(finished):
    round_, _ = finished
    site, vector = masked_vector(round_.sent[Leg.MASKED, 3])
    assert site == 3
    assert vector.dtype == np.uint32
    assert vector.shape == (8,)
    assert not vector.flags.writeable
    odd = Masked(1, bytes(32), b"abc", bytes(64)).encode()
    with pytest.raises(Violation) as caught:
        masked_vector(odd)
    assert caught.value.code == "bad-length"
