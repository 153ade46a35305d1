"""What a strategy has a site keep from round to round, and never send.

SCAFFOLD (Karimireddy et al., ICML 2020, option II): the site's control variate c_i, float32[d]. It
is what the site's own noised update says its mean gradient is: a function of what was paid for and
of public models, so it costs no privacy beyond that.

Losing it costs accuracy, not privacy: a site without one starts at zero again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedflow.learning.model_file import Arrays, ModelSpec
from fedflow.learning.plan import Plan
from fedflow.learning.server_state import CONTROL


def site_spec(model: ModelSpec, plan: Plan) -> ModelSpec | None:
    """Names and shapes of what a site keeps for a plan; None where it keeps nothing."""
    if not plan.keeps_at_sites:
        return None
    return ModelSpec(((CONTROL, (model.dimension,)),))


def correction(state: Arrays, own: Arrays | None) -> NDArray[np.float64] | None:
    """SCAFFOLD's c - c_i, float64[d], to be added to every local gradient; None without SCAFFOLD.

    ``state`` are the tensors of the global file, ``own`` what the site kept.
    """
    if CONTROL not in state:
        return None
    control = state[CONTROL].astype(np.float64)
    return control if own is None else control - own[CONTROL].astype(np.float64)


def after_round(
    state: Arrays,
    own: Arrays | None,
    vector: NDArray[np.float32] | NDArray[np.int64],
    plan: Plan,
    *,
    sites: int,
    value_range: float,
) -> Arrays | None:
    """What the site keeps once the noised ``vector`` it trained is in a sum.

    ``state`` are the tensors of the global file it trained from; ``vector``, ``sites`` and
    ``value_range`` those of :func:`~fedflow.learning.contribution.contribution`.
    """
    if CONTROL not in state:
        return None
    change = vector[: state[CONTROL].size].astype(np.float64)
    if vector.dtype == np.int64:
        change /= plan.coding(sites, value_range).values.scale
    path = plan.local_steps * plan.training.learning_rate
    before = np.zeros(change.size) if own is None else own[CONTROL].astype(np.float64)
    moved = before - state[CONTROL].astype(np.float64) - change / path
    return {CONTROL: moved.astype(np.float32)}
