"""Layers that stay at the sites: each site has its own, and the sum is over the rest.

Arivazhagan et al., "Federated learning with personalization layers" (FedPer, 2019): a shared body
and a head of each site's own. Li et al., "FedBN" (ICLR 2021): the same with normalisation layers.
Which they are is in the plan, by patterns of parameter names. They take part in every local step as
all parameters do (one gradient, clipped and noised as a whole), but are in no model file.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from fedflow.errors import Refusal
from fedflow.learning.model_file import Arrays
from fedflow.learning.plan import Plan


def is_local(name: str, plan: Plan) -> bool:
    """Whether the parameter of this name stays at the sites."""
    return any(fnmatchcase(name, pattern) for pattern in plan.training.local_layers)


def split_layers(model: Arrays, plan: Plan) -> tuple[Arrays, Arrays]:
    """What travels of ``model``, all of a workload's parameters, and what stays at a site.

    Refusal ``local-layers`` for a pattern of the plan that matches nothing, and for patterns that
    leave nothing to travel.
    """
    for pattern in plan.training.local_layers:
        if not any(fnmatchcase(name, pattern) for name in model):
            raise Refusal(
                "local-layers",
                f"training.local_layers {pattern!r} matches no parameter of the workload"
                f" (there are: {', '.join(sorted(model))})",
            )
    shared = {name: array for name, array in model.items() if not is_local(name, plan)}
    if not shared:
        raise Refusal(
            "local-layers", "training.local_layers match every parameter: nothing is left to sum"
        )
    return shared, {name: array for name, array in model.items() if name not in shared}
