"""Known answers, made by tests/vectors/make_vectors.py without the code under test."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedflow.crypto.aead import open_sealed, seal_once
from fedflow.crypto.agreement import KeyPair
from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import PublicKey
from fedflow.crypto.kdf import pair_mask_key, self_mask_key, share_key
from fedflow.crypto.masks import add_masks
from fedflow.crypto.merkle import MerkleTree
from fedflow.crypto.shamir import Interpolator, parse_share, split
from fedflow.errors import Violation

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "crypto.json").read_text())


def raw(case, *names):
    return [bytes.fromhex(case[name]) for name in names]


def identity(case):
    body, signature = raw(case, "body", "signature")
    PublicKey.from_hex(case["public"]).verify(case["label"], body, signature)


def csprng(case):
    seed, stream = raw(case, "seed", "stream")
    assert Csprng.from_seed(seed).bytes(len(stream)) == stream


def derive(case):
    secret, context, key = raw(case, "secret", "context", "key")
    function = {"self-mask": self_mask_key, "pair-mask": pair_mask_key, "share-aead": share_key}
    assert function[case["label"]](secret, context, *case["sites"]) == key


def agreement(case):
    private, peer = raw(case, "private", "peer")
    shared = KeyPair(private).shared(peer)
    assert shared == bytes.fromhex(case["shared"])


def masks(case):
    vector = np.zeros(len(case["words"]), np.uint32)
    add_masks(vector, raw(case, "key"), [1], start=case["start"])
    assert vector.tolist() == case["words"]


def shamir(case):
    if "shares" not in case:
        parse_share(*raw(case, "share"))
        return
    secret, seed = raw(case, "secret", "seed")
    points = case["points"]
    dealt = split(secret, points, case["threshold"], Csprng.from_seed(seed))
    assert [share.hex() for share in dealt] == case["shares"]
    values = [parse_share(share) for share in dealt]
    assert Interpolator(points[1:]).secret(values[1:]) == secret


def aead(case):
    key, associated, sealed = raw(case, "key", "associated", "sealed")
    plaintext = open_sealed(key, sealed, associated)
    assert plaintext == bytes.fromhex(case["plaintext"])
    assert seal_once(key, plaintext, associated) == sealed


def merkle(case):
    leaves = [bytes.fromhex(leaf) for leaf in case["leaves"]]
    assert MerkleTree(leaves).root.hex() == case["root"]


CHECKS = {f.__name__: f for f in (identity, csprng, derive, agreement, masks, shamir, aead, merkle)}
CASES = [(name, i) for name, cases in VECTORS.items() for i in range(len(cases))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_vector(name, number):
    case = VECTORS[name][number]
    check = CHECKS[name.split("_bad_")[0]]
    if "_bad_" not in name:
        check(case)
        return
    with pytest.raises(Violation) as caught:
        check(case)
    assert caught.value.code == case["code"]


def test_every_check_has_a_vector():
    assert {name.split("_bad_")[0] for name in VECTORS} == set(CHECKS)
