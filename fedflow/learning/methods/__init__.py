"""Methods without a gradient: each round is one secure sum of vectors that units add up to.

A method says what one unit (a person, a record) contributes, float64[d]; sites clip it to the
plan's norm, add, noise and mask it as they do with gradients (``privacy.mechanism = "summed"``), so
budget, ledger and audit know no difference. From the opened sum every party computes the next
state, of which the model file's tensor ``sums`` has as many numbers as the sum, and the method's
memory tensors (names start with "~") hold what was learned so far.
"""

from __future__ import annotations

from fedflow.learning.methods.base import SUMS, Method, needs_features, unit_batches
from fedflow.learning.methods.forest import Forest
from fedflow.learning.methods.gbdt import Gbdt
from fedflow.learning.methods.histogram import Histogram
from fedflow.learning.methods.kmeans import KMeans
from fedflow.learning.methods.linear import Linear
from fedflow.learning.methods.moments import Moments
from fedflow.learning.methods.prototypes import Prototypes
from fedflow.learning.plan import Plan

__all__ = ["SUMS", "Method", "method_of", "needs_features", "unit_batches"]

_METHODS: dict[str, Method] = {
    "forest": Forest(),
    "gbdt": Gbdt(),
    "histogram": Histogram(),
    "kmeans": KMeans(),
    "linear": Linear(),
    "moments": Moments(),
    "prototypes": Prototypes(),
}


def method_of(plan: Plan) -> Method | None:
    """The method of a plan; None where rounds sum updates or gradients of the workload's model."""
    return _METHODS[plan.strategy.name] if plan.is_method else None
