import itertools
import pickle

import pytest

from fedflow.crypto.aead import open_sealed, seal_once
from fedflow.crypto.agreement import KeyPair
from fedflow.crypto.csprng import Csprng
from fedflow.crypto.kdf import derive, pair_mask_key, self_mask_key, share_key
from fedflow.crypto.merkle import MerkleTree, root_of
from fedflow.errors import Misuse, Violation

SECRET, CONTEXT = b"s" * 32, b"c" * 32

# The points of small order on the curve and its twist, and their non-canonical forms (RFC 7748
# section 6.1 requires the check; the list is the one libsodium refuses).
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
]


def test_agreement_is_mutual_and_fresh():
    generator = Csprng.from_os()
    a, b = KeyPair.generate(generator), KeyPair.generate(generator)
    assert a.shared(b.public) == b.shared(a.public)
    assert a.private != b.private


@pytest.mark.parametrize("public", LOW_ORDER)
def test_low_order_keys_are_refused(public):
    with pytest.raises(Violation) as caught:
        KeyPair(SECRET).shared(bytes.fromhex(public))
    assert caught.value.code == "bad-key"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_size_are_refused(size):
    with pytest.raises(Violation):
        KeyPair(SECRET).shared(bytes(size))
    with pytest.raises(Misuse):
        KeyPair(bytes(size))


def test_a_key_pair_does_not_leak():
    pair = KeyPair(SECRET)
    assert repr(pair) == "KeyPair(<secret>)"
    with pytest.raises(Misuse):
        pickle.dumps(pair)


def test_purposes_sites_and_contexts_never_share_a_key():
    keys = [
        self_mask_key(SECRET, CONTEXT, 1),
        self_mask_key(SECRET, CONTEXT, 2),
        pair_mask_key(SECRET, CONTEXT, 1, 2),
        pair_mask_key(SECRET, CONTEXT, 1, 3),
        share_key(SECRET, CONTEXT, 1, 2),
        share_key(SECRET, CONTEXT, 2, 1),
        self_mask_key(SECRET, b"d" * 32, 1),
        self_mask_key(b"t" * 32, CONTEXT, 1),
    ]
    assert len(set(keys)) == len(keys)


def test_a_pair_has_one_mask_key():
    assert pair_mask_key(SECRET, CONTEXT, 3, 2) == pair_mask_key(SECRET, CONTEXT, 2, 3)


@pytest.mark.parametrize(("secret", "context"), [(b"", CONTEXT), (SECRET, b""), (SECRET, b"c")])
def test_derivation_needs_full_size_inputs(secret, context):
    with pytest.raises(Misuse):
        derive(secret, context, "self-mask", 1)


def test_every_changed_byte_of_a_sealed_share_is_noticed():
    sealed = seal_once(SECRET, b"p" * 66, b"associated")
    assert len(sealed) == 82
    assert open_sealed(SECRET, sealed, b"associated") == b"p" * 66
    for at in range(82):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(Violation):
            open_sealed(SECRET, changed, b"associated")
    for key, associated in ((CONTEXT, b"associated"), (SECRET, b"associateD")):
        with pytest.raises(Violation) as caught:
            open_sealed(key, sealed, associated)
        assert caught.value.code == "bad-ciphertext"


@pytest.mark.parametrize("count", range(1, 18))
def test_merkle_paths_prove_their_leaf_and_nothing_else(count):
    leaves = [b"leaf %d" % i for i in range(count)]
    tree = MerkleTree(leaves)
    for i, j in itertools.product(range(count), repeat=2):
        try:
            proven = root_of(leaves[i], j, count, tree.path(j)) == tree.root
        except Violation:
            proven = False
        assert proven == (i == j)


def test_merkle_paths_have_one_length():
    tree = MerkleTree([b"a", b"b", b"c"])
    path = tree.path(0)
    for wrong in (path[:-1], (*path, bytes(32)), ()):
        with pytest.raises(Violation) as caught:
            root_of(b"a", 0, 3, wrong)
        assert caught.value.code == "bad-path"
    with pytest.raises(Misuse):
        root_of(b"a", 3, 3, path)
    with pytest.raises(Misuse):
        MerkleTree([])


def test_an_inner_node_is_not_a_leaf():
    tree = MerkleTree([b"a", b"b", b"c", b"d"])
    left = MerkleTree([b"a", b"b"])
    inner = b"".join(MerkleTree([leaf]).root for leaf in (b"a", b"b"))
    assert root_of(inner, 0, 2, [tree.path(0)[1]]) != tree.root
    assert left.root == tree.path(2)[1]
