import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse

SEED = bytes(range(32))


def seeded():
    return Csprng.from_seed(SEED)


def test_the_stream_is_aes_256_ctr_from_a_zero_counter():
    # AES-256 of the zero block under the zero key (NIST AESAVS, KAT of appendix B-D).
    assert Csprng.from_seed(bytes(32)).bytes(16).hex() == "dc95c078a2408989ad48a21492842087"


def test_draws_are_the_stream_read_little_endian():
    stream = seeded().bytes(64)
    assert np.array_equal(seeded().uint32(16), np.frombuffer(stream, "<u4"))
    assert np.array_equal(seeded().uint64(8), np.frombuffer(stream, "<u8"))
    expected = (np.frombuffer(stream, "<u8") >> np.uint64(11)) / 2.0**53
    assert np.array_equal(seeded().uniform(8), expected)


def test_the_stream_does_not_depend_on_how_it_is_cut():
    whole = seeded().bytes(1_000_000)
    generator = seeded()
    parts = [generator.bytes(n) for n in (0, 1, 15, 300_000, 262_144, 437_840)]
    assert b"".join(parts) == whole


def test_types_and_shapes():
    generator = seeded()
    assert generator.uint32(3).dtype == np.uint32
    assert generator.uint64(3).dtype == np.uint64
    assert generator.uniform(3).dtype == np.float64
    for draw in (generator.uint32, generator.uint64, generator.uniform):
        assert draw(0).shape == (0,)
        assert draw(5).shape == (5,)
        with pytest.raises(Misuse):
            draw(-1)


def test_uniform_passes_ks_and_bits_pass_chi_squared():
    generator = seeded()
    values = generator.uniform(200_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-4
    counts = np.bincount(np.frombuffer(generator.bytes(1 << 20), np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_two_generators_from_the_os_differ():
    assert Csprng.from_os().bytes(32) != Csprng.from_os().bytes(32)


def test_children_are_reproducible_yet_never_share_a_stream():
    def draws():
        root = seeded()
        return [root.child(label).bytes(32) for label in ("a", "b", "a")] + [root.bytes(32)]

    assert draws() == draws()
    assert len(set(draws())) == 4


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_seed_has_32_bytes(size):
    with pytest.raises(Misuse):
        Csprng.from_seed(bytes(size))


def _in_child(action) -> bytes:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, action())
        finally:
            os._exit(0)
    os.close(write)
    data = os.read(read, 4096)
    os.close(read)
    os.waitpid(pid, 0)
    return data


def test_a_forked_child_never_repeats_its_parent_or_its_sibling():
    generator = Csprng.from_os()
    child = generator.child("noise")
    generator.bytes(5)
    forked = [_in_child(lambda: generator.bytes(32) + child.bytes(32)) for _ in range(2)]
    own = generator.bytes(32) + child.bytes(32)
    pieces = [data[i : i + 32] for data in (*forked, own) for i in (0, 32)]
    assert len(set(pieces)) == 6
    assert all(len(piece) == 32 for piece in pieces)


def test_a_grandchild_differs_from_a_child():
    generator = Csprng.from_os()

    def child() -> bytes:
        return generator.bytes(32) + _in_child(lambda: generator.bytes(32))

    data = _in_child(child)
    assert data[:32] != data[32:]
    assert len(data) == 64


def test_a_fork_while_another_thread_draws_does_not_hang():
    generator = Csprng.from_os()
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(generator.bytes, 50_000_000)
        assert len(_in_child(lambda: generator.bytes(32))) == 32
        busy.result()


def test_a_public_seed_stays_deterministic_after_a_fork():
    generator = seeded()
    assert _in_child(lambda: generator.bytes(32)) == generator.bytes(32)


def test_threads_never_get_the_same_output():
    generator = Csprng.from_os()
    with ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda _: generator.bytes(16), range(2000)))
    assert len(set(pieces)) == 2000


def test_a_generator_is_not_duplicated_or_shown():
    generator = seeded()
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(Misuse):
            leak(generator)
    assert repr(generator) == "Csprng(<secret>, from_seed)"
