import copy
import os
import pickle
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import InputError, Misuse, Violation


@pytest.fixture(scope="module")
def identity():
    return Identity.generate()


def test_a_signature_covers_prefix_label_and_body(identity):
    signature = identity.sign("order", b"body")
    assert len(signature) == 64
    Ed25519PublicKey.from_public_bytes(identity.public.raw).verify(
        signature, b"fedflow/1 order\0body"
    )
    identity.public.verify("order", b"body", signature)


@pytest.mark.parametrize(
    ("label", "body"), [("orders", b"body"), ("order", b"bodY"), ("order", b"")]
)
def test_a_signature_for_something_else_is_refused(identity, label, body):
    with pytest.raises(Violation) as caught:
        identity.public.verify(label, body, identity.sign("order", b"body"))
    assert caught.value.code == "bad-signature"


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_of_the_wrong_size_is_a_bad_signature(identity, size):
    with pytest.raises(Violation, match="signature"):
        identity.public.verify("order", b"", bytes(size))


def test_every_changed_bit_of_a_signature_is_refused(identity):
    signature = identity.sign("order", b"body")
    for bit in range(0, 512, 7):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Violation):
            identity.public.verify("order", b"body", bytes(changed))


@pytest.mark.parametrize("label", ["", "a\0b", "é", "a\nb"])
def test_labels_that_could_blur_into_the_body_are_misuse(identity, label):
    with pytest.raises(Misuse):
        identity.sign(label, b"")
    with pytest.raises(Misuse):
        identity.public.verify(label, b"", bytes(64))


def test_public_keys_compare_hash_print_and_read_back(identity):
    key = identity.public
    assert PublicKey.from_hex(key.hex()) == key
    assert {key: 1}[PublicKey(key.raw)] == 1
    assert key != Identity.generate().public
    groups = key.fingerprint().split(" ")
    assert len(groups) == 8
    assert all(len(group) == 4 for group in groups)
    assert key.fingerprint() in repr(key)


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, "AB" * 32, " " + "0" * 63])
def test_a_malformed_public_key_is_refused(text):
    with pytest.raises(Violation) as caught:
        PublicKey.from_hex(text)
    assert caught.value.code == "bad-public-key"


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_save_and_load(identity, tmp_path, passphrase):
    path = tmp_path / "identity.pem"
    identity.save(path, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (b"ENCRYPTED" in path.read_bytes()) == (passphrase is not None)
    assert Identity.load(path, passphrase).public == identity.public


def test_the_mode_does_not_depend_on_the_umask(identity, tmp_path):
    before = os.umask(0)
    try:
        identity.save(tmp_path / "identity.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "identity.pem").stat().st_mode) == 0o600


def test_an_identity_is_never_overwritten(identity, tmp_path):
    path = tmp_path / "identity.pem"
    identity.save(path)
    with pytest.raises(InputError, match="never overwritten"):
        Identity.generate().save(path)
    assert Identity.load(path).public == identity.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_open_to_others_is_refused_with_the_remedy(identity, tmp_path, mode):
    path = tmp_path / "identity.pem"
    identity.save(path)
    path.chmod(mode)
    with pytest.raises(InputError, match="chmod 600"):
        Identity.load(path)


def test_passphrase_mistakes_say_what_is_wrong(identity, tmp_path):
    identity.save(tmp_path / "closed.pem", b"right")
    identity.save(tmp_path / "open.pem")
    with pytest.raises(InputError, match="needs a passphrase"):
        Identity.load(tmp_path / "closed.pem")
    with pytest.raises(InputError, match="passphrase is wrong"):
        Identity.load(tmp_path / "closed.pem", b"wrong")
    with pytest.raises(InputError, match="has no passphrase"):
        Identity.load(tmp_path / "open.pem", b"some")
    with pytest.raises(InputError, match="empty"):
        identity.save(tmp_path / "other.pem", b"")


def test_files_that_are_not_an_ed25519_key_are_refused(tmp_path):
    other = X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    cases = {"other": other, "garbage": b"no key", "empty": b"", "huge": b"x" * 20_000}
    for name, content in cases.items():
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            Identity.load(path)
    with pytest.raises(InputError, match="No such file"):
        Identity.load(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot write"):
        Identity.generate().save(tmp_path / "no" / "folder.pem")


def test_the_private_key_does_not_leak_by_repr_pickle_or_copy(identity):
    assert "<secret>" in repr(identity)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(Misuse):
            leak(identity)
