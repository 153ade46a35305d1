"""Boston housing: 506 tracts, 13 columns, median value of homes (Harrison and Rubinfeld, 1978)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.fetch import BOSTON
from fedflow.workloads.housing import CENTRE, COLUMNS, SCALE


def load_boston() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features float32[506, 13] and target float32[506]; DataMissing when they were not fetched."""
    rows = np.loadtxt(BOSTON.path("boston_housing.csv"), delimiter=",")
    constants = np.array(list(COLUMNS.values()))
    features = np.clip((rows[:, :-1] - constants[:, 0]) / constants[:, 1], -3.0, 3.0)
    return features.astype(np.float32), ((rows[:, -1] - CENTRE) / SCALE).astype(np.float32)
