"""What a job starts from: the workload's model with the plan's server memory, and its spec."""

from __future__ import annotations

from typing import NamedTuple

from fedflow.learning.model_file import ModelSpec, encode_model
from fedflow.learning.plan import Plan
from fedflow.learning.server_state import initial_state, state_spec
from fedflow.learning.workload import find_workload, initial_model, model_spec


class FirstModel(NamedTuple):
    """The first model file of a plan's jobs, the spec of the file, the workload's persons."""

    file: bytes
    spec: ModelSpec
    reference_persons: int | None


def first_model(plan: Plan) -> FirstModel:
    """What ``plan`` starts from; Refusal when its workload is not installed."""
    workload = find_workload(plan.plan.workload)
    return FirstModel(
        encode_model(initial_state(initial_model(workload), plan)),
        state_spec(model_spec(workload), plan),
        workload.reference_persons,
    )
