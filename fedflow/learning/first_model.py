"""What a job starts from: the workload's model with the plan's server memory, and its spec."""

from __future__ import annotations

from typing import NamedTuple

from fedflow.learning.local_layers import split_layers
from fedflow.learning.methods import SUMS, method_of
from fedflow.learning.model_file import Arrays, ModelSpec, decode_model, encode_model
from fedflow.learning.plan import Plan
from fedflow.learning.preprocessing import check_section
from fedflow.learning.server_state import initial_state, state_spec
from fedflow.learning.workload import Workload, find_workload, initial_model


class FirstModel(NamedTuple):
    """The first model file of a plan's jobs, the spec of the file, the workload's persons."""

    file: bytes
    spec: ModelSpec
    reference_persons: int | None


def first_model(plan: Plan) -> FirstModel:
    """What ``plan`` starts from; Refusal when its workload is not installed."""
    workload = find_workload(plan.plan.workload)
    model = plan_model(workload, plan)
    return FirstModel(
        encode_model(initial_state(model, plan)),
        state_spec(ModelSpec.of(model), plan),
        workload.reference_persons,
    )


def plan_model(workload: Workload, plan: Plan) -> Arrays:
    """The public tensors that a job starts from, without memory: a model's weights, or sums.

    Layers that stay at the sites are not among them. Refusal when the plan does not suit the
    workload.
    """
    check_section(workload, plan)
    method = method_of(plan)
    if method is not None:
        return {SUMS: method.first_sums(workload, plan)}
    return split_layers(initial_model(workload), plan)[0]


def plan_spec(workload: Workload, plan: Plan) -> ModelSpec:
    """Names and shapes of :func:`plan_model`."""
    return ModelSpec.of(plan_model(workload, plan))


def decode_state(file: bytes, workload: Workload, plan: Plan) -> Arrays:
    """All tensors of a model file of ``plan``'s jobs; Violation for bytes that are not one."""
    return decode_model(file, state_spec(plan_spec(workload, plan), plan))
