"""The global model with what the server's optimiser remembers, as one file and one vector.

The optimiser's memory decides the next model as much as the model does, so it belongs to what every
party recomputes, hashes and agrees on. It travels in the model file as further float32 tensors
whose names start with "~", which sorts behind every parameter: in the flat vector the model is the
first part, and a plan without such memory has a file of the model alone.

======================  =====  ================================================================
``~clipping_norm``      [1]    adaptive clipping: the norm that the next round clips to
``~control``            [d]    SCAFFOLD: the mean of all sites' control variates
``~group_means``        [G·k]  groups: the means so far of this cycle's sums of k coordinates
``~momentum``           [d]    momentum: the running step; Adam and Yogi: the first moment
``~round``              [1]    groups and sparse updates: training rounds that led to this model
``~second_moment``      [d]    Adam, Yogi, Adagrad
``~steps``              [1]    Adam: steps taken
======================  =====  ================================================================

The methods of :mod:`fedflow.learning.methods` have tensors of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse, Violation
from fedflow.learning.methods import method_of
from fedflow.learning.model_file import Arrays, ModelSpec
from fedflow.learning.plan import Plan

MARK = "~"
CLIPPING_NORM, CONTROL, GROUP_MEANS, MOMENTUM, ROUND, SECOND_MOMENT, STEPS = (
    "~clipping_norm",
    "~control",
    "~group_means",
    "~momentum",
    "~round",
    "~second_moment",
    "~steps",
)


def memory_sizes(plan: Plan, dimension: int) -> dict[str, int]:
    """Sizes of the memory tensors of ``plan`` for a model of ``dimension`` parameters, sorted."""
    method = method_of(plan)
    if method is not None:
        return dict(sorted(method.memory_sizes(plan, dimension).items()))
    strategy, sizes = plan.strategy, {}
    if plan.privacy.clipping_quantile is not None:
        sizes[CLIPPING_NORM] = 1
    if strategy.name == "scaffold":
        sizes[CONTROL] = dimension
    if plan.participation.groups is not None:
        sizes[GROUP_MEANS] = plan.cycle * plan.sent(dimension)
    if strategy.server_optimizer in ("adam", "yogi") or strategy.server_momentum > 0:
        sizes[MOMENTUM] = dimension
    if plan.participation.groups is not None or plan.secure_aggregation.density < 1:
        sizes[ROUND] = 1
    if strategy.server_optimizer != "sgd":
        sizes[SECOND_MOMENT] = dimension
    if strategy.server_optimizer == "adam":
        sizes[STEPS] = 1
    return sizes


def state_spec(model: ModelSpec, plan: Plan) -> ModelSpec:
    """Names and shapes of the whole file for a model of this spec."""
    memory = memory_sizes(plan, model.dimension)
    if any(name.startswith(MARK) for name, _ in model.shapes):
        raise Misuse(f"a parameter's name cannot start with {MARK!r}")
    return ModelSpec(model.shapes + tuple((name, (size,)) for name, size in memory.items()))


def model_spec_of(spec: ModelSpec, plan: Plan) -> ModelSpec:
    """The model's part of a file's spec; Violation "bad-model" unless the rest is the plan's."""
    model = ModelSpec(tuple(shape for shape in spec.shapes if not shape[0].startswith(MARK)))
    if state_spec(model, plan) != spec:
        raise Violation("bad-model", "the model file does not hold what the plan's optimiser needs")
    return model


def initial_state(model: Arrays, plan: Plan) -> Arrays:
    """The first file's tensors: the model, and memory, which is zero but for two of its tensors.

    The clipping norm is the plan's, and Yogi's and Adagrad's second moment starts at the square of
    ``server_adaptivity`` (Reddi et al. 2021, Algorithm 2).
    """
    spec = state_spec(ModelSpec.of(model), plan)
    state = spec.zeros() | dict(model)
    if CLIPPING_NORM in state:
        state[CLIPPING_NORM] = np.array([plan.privacy.clipping_norm], np.float32)
    if plan.strategy.server_optimizer in ("yogi", "adagrad"):
        state[SECOND_MOMENT] += np.float32(plan.strategy.server_adaptivity**2)
    return state


def parameters(state: Arrays) -> Arrays:
    """The model's own tensors."""
    return {name: array for name, array in state.items() if not name.startswith(MARK)}


def clipping_norm_of(state: Arrays, plan: Plan) -> float:
    """The L2 norm that the next round clips to."""
    return float(state[CLIPPING_NORM][0]) if CLIPPING_NORM in state else plan.privacy.clipping_norm


def rounds_done(memory: Mapping[str, NDArray[np.float32]]) -> int:
    """Training rounds that led to this model; 0 where the plan does not have them counted.

    ``memory`` holds the tensors of a model file, or its memory alone.
    """
    return int(memory[ROUND][0]) if ROUND in memory else 0


def memory_views(
    vector: NDArray[np.float32], plan: Plan, dimension: int
) -> dict[str, NDArray[np.float32]]:
    """Views of the memory tensors in a flat state float32[D]; Misuse for another length."""
    sizes = memory_sizes(plan, dimension)
    if vector.dtype != np.float32 or vector.shape != (dimension + sum(sizes.values()),):
        raise Misuse(f"a state of {dimension} parameters is not {vector.dtype}{vector.shape}")
    views, at = {}, dimension
    for name, size in sizes.items():
        views[name] = vector[at : at + size]
        at += size
    return views
