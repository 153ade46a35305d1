"""Model files: exactly one encoding per model, everything else refused."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from fedflow.errors import Misuse, Violation
from fedflow.learning.model_file import (
    ModelSpec,
    decode_model,
    encode_model,
    flatten,
    model_digest,
    unflatten,
)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
models = st.dictionaries(
    st.from_regex(r"\A[a-z.]{1,8}\Z"),
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4), elements=floats),
    min_size=1,
    max_size=4,
)


def small():
    return {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}


@given(models)
def test_round_trips(arrays):
    spec = ModelSpec.of(arrays)
    data = encode_model(arrays)
    back = decode_model(data, spec)
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    assert encode_model(dict(reversed(arrays.items()))) == data
    vector = flatten(arrays)
    assert vector.shape == (spec.dimension,)
    assert encode_model(unflatten(vector, spec)) == data


def test_flatten_orders_by_name():
    assert flatten(small()).tolist() == [1, 1, 0, 1, 2, 3, 4, 5]


@given(st.data())
@settings(max_examples=200)
def test_any_changed_byte_is_refused_or_changes_the_digest(draw):
    arrays = small()
    data = encode_model(arrays)
    at = draw.draw(st.integers(0, len(data) - 1))
    damaged = data[:at] + bytes([data[at] ^ draw.draw(st.integers(1, 255))]) + data[at + 1 :]
    code = "accepted"
    try:
        assert encode_model(decode_model(damaged, ModelSpec.of(arrays))) == damaged
    except Violation as violation:
        code = violation.code
    assert code in ("accepted", "bad-model")
    assert model_digest(damaged) != model_digest(data)
    if at < len(data) - 4 * 8:  # the header: names, shapes, offsets
        assert code == "bad-model"


def bad_files():
    good = small()
    data = encode_model(good)
    nan = small() | {"b": np.array([1, np.nan], np.float32)}
    inf = small() | {"b": np.array([1, np.inf], np.float32)}
    yield "truncated", data[:-1]
    yield "empty", b""
    yield "longer", data + b"\0"
    yield "other name", save({"w": good["w"], "c": good["b"]})
    yield "other shape", save({"w": good["w"].reshape(3, 2), "b": good["b"]})
    yield "other dtype", save({k: v.astype(np.float64) for k, v in good.items()})
    yield "same size dtype", save({k: v.view(np.int32) for k, v in good.items()})
    yield "nan", save(nan)
    yield "inf", save(inf)
    yield "metadata", save(good, metadata={"a": "b"})
    yield "missing", save({"w": good["w"]})
    yield "garbage of the right size", bytes(len(data))


@pytest.mark.parametrize(("name", "data"), list(bad_files()), ids=[n for n, _ in bad_files()])
def test_bad_files(name, data):
    with pytest.raises(Violation) as caught:
        decode_model(data, ModelSpec.of(small()))
    assert caught.value.code == "bad-model"


def test_misuse():
    with pytest.raises(Misuse):
        encode_model({})
    with pytest.raises(Misuse):
        encode_model({"w": np.zeros(2)})
    with pytest.raises(Misuse):
        encode_model({"w": np.array([np.nan], np.float32)})
    with pytest.raises(Misuse):
        unflatten(np.zeros(7, np.float32), ModelSpec.of(small()))
    with pytest.raises(Misuse):
        unflatten(np.zeros(8), ModelSpec.of(small()))


def test_spec_digest_depends_on_names_and_shapes():
    spec = ModelSpec.of(small())
    other = ModelSpec.of(small() | {"w": np.zeros((3, 2), np.float32)})
    assert len({spec.digest(), other.digest()}) == 2
    assert spec.dimension == other.dimension == 8


def test_plans_and_model_files_need_no_torch():
    code = (
        "import sys, fedflow.learning.plan, fedflow.learning.model_file, fedflow.learning.strategy;"
        "sys.exit('torch' in sys.modules or 'prefect' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
