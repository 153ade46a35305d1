"""One imputer and one scaler, the same at every site: what a plan's ``[preprocessing]`` does.

Each site filling and scaling by its own means would give the same value another meaning at every
site, and those means, told to nobody, would still be in every update. Here they are constants of
the plan: public, signed, part of its digest. They come from a describing job, whose noised sums
were paid for (:mod:`fedflow.learning.statistics`), or from what the columns mean.

A missing number becomes ``fill`` and is said by a feature of its own (one per column that may miss
values, after all columns); numbers become ``(x - centre) / scale`` within ``±clamp``; categories
that are not kept become "other". Data that miss values without such a section are refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedflow.errors import Misuse, Refusal
from fedflow.learning.methods.columns import Column, columns_of
from fedflow.learning.plan import Plan
from fedflow.learning.plan_sections import ColumnSection, PreprocessingSection
from fedflow.learning.workload import PersonData, Persons, Workload


def check_section(workload: Workload, plan: Plan) -> None:
    """Refusal unless the plan says what its workload needs; by public things only."""
    section = plan.preprocessing
    if plan.is_describing:
        return
    if not plan.is_prepared:
        said = getattr(workload, "columns", None) or ()
        if missing := [column.name for column in said if column.may_miss]:
            raise _unfilled(f"workload {workload.name!r} ({', '.join(missing)})")
        return
    columns = columns_of(workload)
    if len(section.columns) != len(columns):
        raise _unfitting(
            f"[preprocessing] has {len(section.columns)} columns,"
            f" workload {workload.name!r} has {len(columns)}"
        )
    for at, (said_of, column) in enumerate(zip(section.columns, columns, strict=True)):
        if said_of.name != column.name:
            raise _unfitting(
                f"column {at} of [preprocessing] is {said_of.name!r},"
                f" that of workload {workload.name!r} is {column.name!r}"
            )
        _check_column(said_of, column)


def prepared_data(data: PersonData, plan: Plan, workload: Workload) -> PersonData:
    """Both parts of a site's data, :func:`prepared`."""
    return PersonData(prepared(data.train, plan, workload), prepared(data.holdout, plan, workload))


def prepared(persons: Persons, plan: Plan, workload: Workload) -> Persons:
    """What the plan's rounds see of ``persons``, as its workload loaded them. A pure function.

    Without ``[preprocessing]``, and in a job that only describes data, they are as they were.
    Refusals ``preprocessing`` as :func:`check_section`, and ``missing-values`` for values that are
    missing where the plan does not say what they become.
    """
    check_section(workload, plan)
    if plan.is_describing:
        return persons
    if not plan.is_prepared:
        if np.isnan(persons.x.min(initial=0.0)):  # one pass, no copy
            raise _unfilled("this site's data")
        return persons
    x = _filled(persons.x, columns_of(workload), plan.preprocessing)
    x[~persons.mask] = 0.0
    return replace(persons, x=x)


class Prepared:
    """A workload whose data are prepared already, for a plan without the section: simulations."""

    def __init__(self, inner: Workload) -> None:
        self.name, self.unit_column = inner.name, inner.unit_column
        self.reference_persons, self.score_range = inner.reference_persons, inner.score_range
        self._inner = inner

    def build_model(self) -> torch.nn.Module:
        """The inner workload's."""
        return self._inner.build_model()

    def load(self, path: str | Path) -> PersonData:
        """Misuse: what is in a file is not prepared."""
        raise Misuse("a workload of prepared data has no files")

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The inner workload's."""
        return self._inner.loss(scores, y)


def prepared_features(columns: tuple[Column, ...]) -> int:
    """Features of prepared data: the columns, and a flag for each that may miss numbers."""
    return len(columns) + sum(column.is_flagged for column in columns)


def _filled(
    x: NDArray[np.float32], columns: tuple[Column, ...], section: PreprocessingSection
) -> NDArray[np.float32]:
    out = np.zeros((*x.shape[:2], prepared_features(columns)), np.float32)
    flag = len(columns)
    for at, (column, said) in enumerate(zip(columns, section.columns, strict=True)):
        missing = np.isnan(x[:, :, at])
        values = np.where(missing, said.fill, x[:, :, at].astype(np.float64))
        if column.categories:
            codes = np.clip(np.rint(values), 0, column.other).astype(np.int64)
            out[:, :, at] = _becomes(column, said)[codes]
            continue
        scaled = (values - said.centre) / said.scale
        out[:, :, at] = np.clip(scaled, -section.clamp, section.clamp)
        if column.is_flagged:
            out[:, :, flag] = missing
            flag += 1
    return out


def _becomes(column: Column, said: ColumnSection) -> NDArray[np.int64]:
    """What each code becomes, int64[K + 1]."""
    codes = np.arange(column.categories + 1)
    return codes if said.keep is None else np.where(np.isin(codes, said.keep), codes, column.other)


def _check_column(said: ColumnSection, column: Column) -> None:
    if not column.low <= said.fill <= column.high:
        raise _unfitting(
            f"column {said.name!r}: fill {said.fill:g} is outside {column.low:g}..{column.high:g}"
        )
    if not column.categories:
        if said.keep is not None:
            raise _unfitting(f"column {said.name!r} is a number and has no categories to keep")
        return
    if (said.centre, said.scale) != (0.0, 1.0) or said.fill != round(said.fill):
        raise _unfitting(
            f"column {said.name!r} holds categories: fill is a code, and they are not scaled"
        )
    if not all(0 <= code <= column.other for code in said.keep or ()):
        raise _unfitting(f"column {said.name!r} has the categories 0 to {column.other}")


def _unfitting(why: str) -> Refusal:
    return Refusal("preprocessing", why)


def _unfilled(whose: str) -> Refusal:
    return Refusal(
        "missing-values",
        f"missing values and no [preprocessing]: {whose} may have cells without a value, and the"
        " plan does not say what they become; a job with strategy.name"
        ' "moments" finds out what to write there',
    )
