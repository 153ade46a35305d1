"""The one history of a job: which model follows from which sums. The same code for every party.

Coordinator, sites and auditors compute it each for themselves, from what is published, and must
come to the same states. :mod:`fedflow.history.state` is pure; :mod:`fedflow.history.published`
reads what an exchange holds and checks it.
"""

from fedflow.history.published import Missing, Published
from fedflow.history.state import (
    START,
    Rules,
    State,
    advance,
    check_due,
    check_order,
    first_state,
    model_file,
)

__all__ = [
    "START",
    "Missing",
    "Published",
    "Rules",
    "State",
    "advance",
    "check_due",
    "check_order",
    "first_state",
    "model_file",
]
