"""What a workload is: local, installed code that gives a plan its data, model and loss.

A workload is found by name through the entry-point group ``fedflow.workloads``. No part of it ever
comes from another party. Its unit column names the person; all rows of one person form one example,
so that a guarantee per example is a guarantee per person.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from fedflow.errors import InputError, Refusal
from fedflow.learning.model_file import Arrays, ModelSpec

ENTRY_POINTS = "fedflow.workloads"


@dataclass(frozen=True)
class Persons:
    """P persons with up to R rows of F features each, padded.

    ``x`` float32[P, R, F], ``y`` float32[P, R] (0 or 1, a class or a value) or float32[P, R, ..]
    with several targets per row, ``mask`` bool[P, R] (true for real rows, at least one per person),
    ``ids`` the P person ids. Images and texts are F numbers too; the model gives them their shape.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    mask: NDArray[np.bool_]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return "Persons(<private>)"

    def take(self, which: NDArray[np.bool_] | NDArray[np.int64] | Sequence[int] | slice) -> Persons:
        """Some of them, by mask, by number or as a slice, in that order."""
        numbers = np.arange(len(self))[which]
        ids = tuple(self.ids[number] for number in numbers)
        return Persons(self.x[which], self.y[which], self.mask[which], ids)

    @classmethod
    def join(cls, parts: Sequence[Persons]) -> Persons:
        """Several groups of persons as one, in order. All have the same R and F."""
        return cls(
            np.concatenate([p.x for p in parts]),
            np.concatenate([p.y for p in parts]),
            np.concatenate([p.mask for p in parts]),
            tuple(i for p in parts for i in p.ids),
        )


@dataclass(frozen=True)
class PersonData:
    """A site's data: the persons it trains on, and those it holds out. No person is in both."""

    train: Persons
    holdout: Persons


def units_of(persons: Persons, unit: str) -> Persons:
    """What is protected as a whole, as entries: each person, or each single row (R = 1).

    With ``unit`` "record" the N real rows become N entries; an id stands with each of its rows.
    """
    if unit != "record" or persons.mask.shape[1] == 1:  # one row each: nothing to copy
        return persons
    person, _ = np.nonzero(persons.mask)
    return Persons(
        persons.x[persons.mask][:, None],
        persons.y[persons.mask][:, None],
        np.ones((len(person), 1), np.bool_),
        tuple(persons.ids[i] for i in person),
    )


@runtime_checkable
class Workload(Protocol):
    """Data, model and loss of one learning task. All attributes are public."""

    name: str
    unit_column: str
    #: Persons a typical site has. Divides the noisy sum of gradients at every site alike, so that
    #: learning rates keep their usual scale and no site's size enters its update.
    reference_persons: int
    # For methods without a gradient it has ``features``, an int, and ``bounds``: they lie between;
    # for regression ``target_bounds``; where the target is a class its number of ``classes``; for
    # people ``feature_names``, one for each feature.
    # Trees divide at public ``cuts``: of each feature ascending values, maybe none; or of each that
    # ``tree_features(x)`` makes of ``x``, float [P, R, F] to [P, R, V].
    # Where features are tokens 0 to n - 1 a workload also has an int attribute ``vocabulary`` = n.
    #: Predicted probabilities between these two are told apart by metric "auc".
    score_range: tuple[float, float]

    def build_model(self) -> torch.nn.Module:
        """A new model with its public initial weights, the same everywhere.

        It takes float32[B, R, F] to one score per row or target, [B, R, ..], or with classes to
        one per class, [B, R, .., K]. Nothing may mix rows of different persons.
        """

    def load(self, path: str | Path) -> PersonData:
        """The site's data file; InputError when it is not usable, naming row and column."""

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Loss per row, [B, R], from the model's ``scores`` and ``y`` as in :class:`Persons`."""


def installed_workloads() -> list[str]:
    """The names of all installed workloads."""
    return sorted(metadata.entry_points(group=ENTRY_POINTS).names)


def find_workload(name: str) -> Workload:
    """The installed workload of this name; Refusal "unknown-workload" when there is not one."""
    found = [e for e in metadata.entry_points(group=ENTRY_POINTS) if e.name == name]
    if len(found) != 1:
        known = ", ".join(installed_workloads()) or "none"
        what = "is not installed here" if not found else "is installed more than once"
        raise Refusal("unknown-workload", f"workload {name!r} {what} (installed: {known})")
    workload = found[0].load()
    if not isinstance(workload, Workload) or workload.name != name:
        raise Refusal("unknown-workload", f"the package for workload {name!r} does not provide it")
    if not workload.unit_column:
        raise Refusal("no-unit", f"workload {name!r} names no unit column, so nobody is protected")
    return workload


def trained_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """What is trained, by name, in the order of a model file; the rest never travels."""
    return sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)


def initial_model(workload: Workload) -> Arrays:
    """The public initial weights of what is trained, as float32 arrays by parameter name.

    What is frozen comes with the installed workload and does not travel.
    """
    parameters = trained_parameters(workload.build_model())
    return {name: p.detach().cpu().numpy().astype(np.float32) for name, p in parameters}


def model_spec(workload: Workload) -> ModelSpec:
    """Names and shapes of the workload's parameters."""
    return ModelSpec.of(initial_model(workload))


def model_with(workload: Workload, arrays: Arrays) -> torch.nn.Module:
    """The workload's model holding ``arrays`` (not sharing memory with them)."""
    model = workload.build_model()
    with torch.no_grad():
        for name, parameter in trained_parameters(model):
            parameter.copy_(torch.from_numpy(arrays[name]))
    return model


def is_held_out(dataset: str, person: str) -> bool:
    """Whether a person is in the 20 % held out. Fixed by data set and person, by no plan.

    The first 8 bytes of SHA-256 of the labelled id, as a fraction of 2^64, are below one fifth.
    """
    label = b"fedflow/1 holdout\0" + dataset.encode() + b"\0" + person.encode()
    return int.from_bytes(hashlib.sha256(label).digest()[:8], "big") * 5 < 1 << 64


def group_by_person(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    ids: Sequence[str],
    *,
    dataset: str,
    max_rows: int,
    where: str,
) -> PersonData:
    """Rows to padded persons, split into train and holdout.

    ``x`` float32[N, F], ``y`` float32[N] or [N, ..], ``ids`` N person ids. InputError when there
    are no rows, a person has more than ``max_rows`` rows, labels are all of one class, or nobody
    is left to train on.
    """
    if not len(ids):
        raise InputError("the file has no rows", where=where)
    if y.min() == y.max():
        raise InputError(f"every row has label {y.flat[0]:g}: nothing can be learned", where=where)
    rows: dict[str, list[int]] = {}
    for row, person in enumerate(ids):
        rows.setdefault(person, []).append(row)
    longest = max(rows, key=lambda person: len(rows[person]))
    if len(rows[longest]) > max_rows:
        raise InputError(
            f"person {longest!r} has {len(rows[longest])} rows", where=where, allowed=f"{max_rows}"
        )
    persons = sorted(rows)
    train = _padded([(p, rows[p]) for p in persons if not is_held_out(dataset, p)], x, y, max_rows)
    holdout = _padded([(p, rows[p]) for p in persons if is_held_out(dataset, p)], x, y, max_rows)
    if not len(train):
        raise InputError("no persons are left to train on after the holdout split", where=where)
    return PersonData(train, holdout)


def _padded(
    persons: Sequence[tuple[str, list[int]]],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    max_rows: int,
) -> Persons:
    shape = (len(persons), max_rows)
    out_x = np.zeros((*shape, x.shape[1]), np.float32)
    out_y, mask = np.zeros((*shape, *y.shape[1:]), np.float32), np.zeros(shape, np.bool_)
    for at, (_, rows) in enumerate(persons):
        out_x[at, : len(rows)], out_y[at, : len(rows)] = x[rows], y[rows]
        mask[at, : len(rows)] = True
    return Persons(out_x, out_y, mask, tuple(person for person, _ in persons))
