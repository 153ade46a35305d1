"""A part of the coordinates in each round, the same at every site: smaller updates that still add.

Sites that each chose their own coordinates could not be summed under masks, and which ones they
chose would tell of their data. So the choice is public: ``secure_aggregation.density`` of the
coordinates, anew in each round, from a hash of the plan and the round's number (the random mask of
Konecny et al., "Federated learning: strategies for improving communication efficiency", 2016).
Sites train these coordinates only, the others rest (a structured update there), so nothing that was
learned is thrown away and nothing has to be scaled up.

The number of a round is in the model file (``~round``), so that whoever has the model knows the
coordinates, and no order can name others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.learning.plan import Plan
from fedflow.wire.messages import labelled_hash

Places = NDArray[np.int64]


def sent_places(plan: Plan, dimension: int, rounds_done: int) -> Places | None:
    """Which of ``dimension`` coordinates the next round sends, ascending int64[k]; None for all.

    ``rounds_done`` training rounds led to the model. All rounds of one cycle send the same.
    """
    count = plan.sent(dimension)
    if count == dimension:
        return None
    step = rounds_done // plan.cycle
    seed = labelled_hash("sparse", plan.digest() + step.to_bytes(4, "big"))
    drawn = Csprng.from_seed(seed).uint64(dimension)
    last = np.partition(drawn, count - 1)[count - 1]
    below, ties = np.flatnonzero(drawn < last), np.flatnonzero(drawn == last)
    return np.sort(np.concatenate([below, ties[: count - below.size]]))


def spread(
    values: NDArray[np.float64], places: NDArray[np.int64], size: int
) -> NDArray[np.float64]:
    """``values`` float64[k] at ``places`` of ``size`` coordinates, zero elsewhere."""
    out = np.zeros(size)
    out[places] = values
    return out
