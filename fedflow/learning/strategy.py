"""The server's step: from the sum of updates to the next global model.

Everything that enters is public once the sum is opened, so every party can repeat the step. It uses
only element-wise operations whose result IEEE 754 fixes, in one order, so that the same inputs give
the same bits everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse
from fedflow.learning.plan import Plan


def apply(
    vector: NDArray[np.float32], summed_update: NDArray[np.float64], count: int, plan: Plan
) -> NDArray[np.float32]:
    """FedAvg: ``vector + server_learning_rate * (summed_update / count)``, as float32[d].

    The uniform mean over sites (McMahan et al., AISTATS 2017, with equal weights: weighting by size
    would reveal sizes). ``summed_update`` float64[d] is the decoded sum over ``count`` sites.
    Misuse for other shapes, types, counts under one or values that are not finite.
    """
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise Misuse(f"the model is float32[d], not {vector.dtype}{vector.shape}")
    if summed_update.dtype != np.float64 or summed_update.shape != vector.shape:
        raise Misuse(f"the sum is float64{vector.shape}, not {summed_update.dtype}")
    if count < 1:
        raise Misuse("a mean needs at least one site")
    step = np.float64(plan.strategy.server_learning_rate) * (summed_update / np.float64(count))
    with np.errstate(over="ignore"):
        out = (vector.astype(np.float64) + step).astype(np.float32)
    if not np.isfinite(out).all():
        raise Misuse("the next model is not finite")
    return out
