"""Model weights as bytes: safetensors in, checked float32 arrays out. Needs no torch.

A model crosses trust boundaries only in this form. What a receiver accepts is fixed beforehand by
:class:`ModelSpec`, so a file with another name, shape, dtype, size or layout is refused before any
of it is used, as is one that holds infinities or not-a-numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedflow.errors import Misuse, Violation

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ModelSpec:
    """Names and shapes of a model's float32 parameters, sorted by name."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Self:
        """The spec that ``arrays`` fulfil."""
        return cls(tuple((name, tuple(arrays[name].shape)) for name in sorted(arrays)))

    @property
    def dimension(self) -> int:
        """Number of parameters d."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of names and shapes under its own label."""
        text = ";".join(f"{name}:{','.join(map(str, shape))}" for name, shape in self.shapes)
        return hashlib.sha256(b"fedflow/1 model-spec\0" + text.encode()).digest()

    def zeros(self) -> Arrays:
        """Arrays of this spec, all zero."""
        return {name: np.zeros(shape, np.float32) for name, shape in self.shapes}


def encode_model(arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    """``arrays`` as a safetensors file; equal arrays give equal bytes.

    Misuse for an empty model, another dtype than float32, or a value that is not finite.
    """
    if not arrays:
        raise Misuse("a model has at least one parameter")
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise Misuse(f"parameter {name!r} is {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise Misuse(f"parameter {name!r} holds a value that is not finite")
    return save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})


def decode_model(data: bytes, spec: ModelSpec) -> Arrays:
    """The arrays in a model file from outside; Violation "bad-model" unless it is exactly ``spec``.

    Only the canonical bytes that :func:`encode_model` writes are accepted.
    """
    expected = len(encode_model(spec.zeros()))
    if len(data) != expected:
        raise _bad(f"it has {len(data)} bytes where this model has {expected}")
    try:
        arrays = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError):
        raise _bad("it is not a safetensors file") from None
    if any(array.dtype != np.float32 for array in arrays.values()):
        raise _bad("it holds another type than float32")
    if ModelSpec.of(arrays) != spec:
        raise _bad("its parameter names or shapes are not this workload's")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise _bad("it holds a value that is not finite")
    arrays = {name: array.copy() for name, array in sorted(arrays.items())}
    if encode_model(arrays) != data:
        raise _bad("its layout is not canonical")
    return arrays


def spec_of(data: bytes) -> ModelSpec:
    """The spec of a model file whose digest is already trusted; Violation "bad-model" if unusable.

    Lets a party without the workload (coordinator, auditor) read what the manifest pinned.
    """
    try:
        arrays = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError):
        raise _bad("it is not a safetensors file") from None
    spec = ModelSpec.of(arrays)
    decode_model(data, spec)
    return spec


def _bad(why: str) -> Violation:
    return Violation("bad-model", f"the model file is refused: {why}")


def flatten(arrays: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """All parameters as one float32[d], in the order of their sorted names."""
    parts = [np.asarray(arrays[name], np.float32).ravel() for name in sorted(arrays)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def unflatten(vector: NDArray[np.float32], spec: ModelSpec) -> Arrays:
    """The inverse of :func:`flatten`; Misuse when ``vector`` is not float32[d] of this spec."""
    if vector.dtype != np.float32 or vector.shape != (spec.dimension,):
        raise Misuse(f"expected float32[{spec.dimension}], got {vector.dtype}{vector.shape}")
    out: Arrays = {}
    at = 0
    for name, shape in spec.shapes:
        size = math.prod(shape)
        out[name] = vector[at : at + size].reshape(shape).copy()
        at += size
    return out


def model_digest(data: bytes) -> bytes:
    """SHA-256 (32 bytes) of a model file's bytes, as ``sha256sum`` prints it."""
    return hashlib.sha256(data).digest()
