"""What is public about the columns of a workload's data: names, bounds, lists of categories.

A workload of tables says it itself (attribute ``columns``); for any other, its features are numbers
between its public bounds, named by their number. Neither NumPy nor torch is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedflow.learning.methods.base import needs_features

if TYPE_CHECKING:
    from fedflow.learning.workload import Workload


@dataclass(frozen=True)
class Column:
    """One column; in the data a missing value is not-a-number.

    Numeric: values lie in ``low..high``. With ``categories`` K > 0: codes 0 to K, of which K is
    "other", whatever is on no list. ``labels`` are the K categories' names where they are public.
    ``may_miss``: empty cells are expected, which is public and a fact about no data.
    """

    name: str
    low: float
    high: float
    categories: int = 0
    labels: tuple[str, ...] = ()
    may_miss: bool = False

    @property
    def other(self) -> int:
        """The code of a category that is not kept, or on no list."""
        return self.categories

    @property
    def is_flagged(self) -> bool:
        """Whether prepared data say by one more feature, 1 or 0, that the value was missing."""
        return self.may_miss and not self.categories

    def label(self, code: int) -> str:
        """What a code is called."""
        if code == self.other:
            return "other"
        return self.labels[code] if self.labels else f"#{code}"


def columns_of(workload: Workload) -> tuple[Column, ...]:
    """The columns of a workload's data; Refusal when it says neither them nor its bounds."""
    said = getattr(workload, "columns", None)
    if said is not None:
        return tuple(said)
    features, low, high = needs_features(workload)
    return tuple(Column(str(at), low, high) for at in range(features))
