import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.shamir import PRIME, Interpolator, Recovery, parse_share, split
from fedflow.errors import Misuse, Violation

secrets = st.binary(min_size=32, max_size=32)
seeds = st.binary(min_size=32, max_size=32)


def shares_of(secret, points, threshold, seed=bytes(32)):
    shares = split(secret, points, threshold, Csprng.from_seed(seed))
    return {x: parse_share(y) for x, y in zip(points, shares, strict=True)}


def test_the_modulus_is_prime():
    # Miller-Rabin to 40 bases; the modulus is fixed, so no adversary chose it against these bases.
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, PRIME)
        chain = [pow(x, 1 << i, PRIME) for i in range(twos)]
        assert x == 1 or PRIME - 1 in chain
    assert PRIME == 2**256 + 297


@given(secrets, seeds, st.integers(1, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_any_threshold_shares_give_the_secret(secret, seed, threshold, data):
    points = data.draw(
        st.lists(st.integers(1, 65536), min_size=threshold, max_size=threshold + 5, unique=True)
    )
    shares = shares_of(secret, points, threshold, seed)
    chosen = data.draw(st.permutations(points))[:threshold]
    assert Interpolator(chosen).secret([shares[x] for x in chosen]) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"\0" * 31 + b"\1"])
def test_extreme_secrets_survive(secret):
    shares = shares_of(secret, [1, 2, 3], 2)
    assert Interpolator([1, 3]).secret([shares[1], shares[3]]) == secret


def test_one_share_too_few_is_consistent_with_every_secret():
    # With t-1 shares fixed, each candidate secret has exactly one completing polynomial.
    shares = shares_of(b"s" * 32, [1, 2, 3], 3)
    held = {1: shares[1], 2: shares[2]}
    completions = set()
    for candidate in range(50):
        basis = Interpolator([1, 2, 3])
        w1, w2, w3 = basis._weights
        third = (candidate - w1 * held[1] - w2 * held[2]) * pow(w3, -1, PRIME) % PRIME
        completions.add(third)
        found = basis.secret([held[1], held[2], third])
        assert int.from_bytes(found, "big") == candidate
    assert len(completions) == 50


def test_two_dealings_of_one_secret_differ():
    generator = Csprng.from_seed(bytes(32))
    assert split(b"s" * 32, [1, 2], 2, generator) != split(b"s" * 32, [1, 2], 2, generator)


@pytest.mark.parametrize(
    ("secret", "points", "threshold"),
    [
        (b"s" * 31, [1, 2], 2),
        (b"s" * 32, [1, 1], 2),
        (b"s" * 32, [0, 1], 2),
        (b"s" * 32, [1, 2], 3),
        (b"s" * 32, [1, 2], 0),
        (b"s" * 32, [1, PRIME], 2),
    ],
)
def test_impossible_dealings_are_misuse(secret, points, threshold):
    with pytest.raises(Misuse):
        split(secret, points, threshold, Csprng.from_seed(bytes(32)))


@pytest.mark.parametrize("points", [[], [1, 1], [0, 1]])
def test_impossible_interpolations_are_misuse(points):
    with pytest.raises(Misuse):
        Interpolator(points)


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), b"\xff" * 33, PRIME.to_bytes(33)])
def test_malformed_shares_are_refused(share):
    with pytest.raises(Violation) as caught:
        parse_share(share)
    assert caught.value.code == "bad-share"


def test_the_largest_field_element_is_a_share():
    assert parse_share((PRIME - 1).to_bytes(33)) == PRIME - 1


def spoil(shares, bad, seed=b"e" * 32):
    noise = Csprng.from_seed(seed)
    for x in bad:
        shares[x] = int.from_bytes(noise.bytes(32), "big")


@pytest.mark.parametrize("bad", [*itertools.combinations(range(1, 7), 2), (1,), (6,), ()])
def test_recovery_leaves_out_wrong_shares_and_names_them(bad):
    secret = b"k" * 32
    shares = shares_of(secret, list(range(1, 7)), 4)
    spoil(shares, bad)
    recovery = Recovery(4, 1, Csprng.from_os())
    assert recovery.recover(shares, lambda s: s == secret) == secret
    # Shares beyond the first subset are only examined once something failed.
    assert recovery.suspects == (set(bad) if min(bad, default=6) <= 4 else set())
    assert "k" * 8 not in repr(recovery)


@pytest.mark.parametrize("bad", list(itertools.combinations(range(1, 7), 2)))
def test_colluders_whose_errors_cancel_cannot_frame_an_honest_site(bad):
    # The error polynomial e(x) = x is zero at zero: it moves shares but never the secret.
    secret = b"k" * 32
    shares = shares_of(secret, list(range(1, 7)), 4)
    for x in bad:
        shares[x] = (shares[x] + x) % PRIME
    recovery = Recovery(4, 2, Csprng.from_os())
    assert recovery.recover(shares, lambda s: s == secret) == secret
    assert recovery.suspects <= set(bad)


def test_recovery_gives_up_when_too_few_are_right():
    secret = b"k" * 32
    shares = shares_of(secret, list(range(1, 7)), 4)
    spoil(shares, (1, 2, 3))
    recovery = Recovery(4, 1, Csprng.from_os())
    assert recovery.recover(shares, lambda s: s == secret) is None
    assert recovery.recover({1: shares[1]}, lambda s: s == secret) is None
    assert not recovery.suspects


def test_recovery_in_a_large_cohort_finds_a_good_subset_at_random():
    secret = b"k" * 32
    points = list(range(1, 91))
    shares = shares_of(secret, points, 67)
    spoil(shares, (3, 40, 88))
    recovery = Recovery(67, 10, Csprng.from_os())
    assert recovery.recover(shares, lambda s: s == secret) == secret
    assert recovery.suspects == {3, 40, 88}
    # What was learnt is used: the second secret succeeds with its first subset.
    other = shares_of(b"j" * 32, points, 67)
    spoil(other, (3,))
    calls = []
    assert recovery.recover(other, lambda s: not calls.append(s) and s == b"j" * 32) == b"j" * 32
    assert len(calls) == 1
