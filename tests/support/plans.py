"""One valid plan for all tests; each room changes the fields it cares about."""

from typing import Any

from fedflow.learning.plan import Plan

#: What rooms use that run whole rounds in one process: few sites, few steps.
SMALL: dict[str, Any] = {
    "plan__name": "test",
    "plan__rounds": 2,
    "cohort__minimum": 3,
    "cohort__colluders": 0,
    "training__local_steps": 2,
    "training__learning_rate": 0.1,
    "privacy__noise_multiplier": 2.0,
    "evaluation__every": 2,
    "evaluation__bins": 4,
}

#: What a plan needs whose noise comes in shares: of each clipped gradient sum, or of whole updates.
SUMMED: dict[str, Any] = {
    "strategy__name": "fedsgd",
    "training__local_steps": 1,
    "training__learning_rate": 1.0,
    "privacy__mechanism": "summed",
}
SITE: dict[str, Any] = {"privacy__mechanism": "site", "privacy__unit": "site"}
AUTO: dict[str, Any] = {"secure_aggregation__value_range": "auto"}


def make_plan(**changes: Any) -> Plan:
    """A plan with single fields changed: ``section__field=value``; ``section=None`` drops it."""
    raw: dict[str, dict[str, Any]] = {
        "plan": {"name": "demo", "workload": "randhie", "rounds": 10},
        "cohort": {"minimum": 4, "colluders": 1},
        "strategy": {"name": "fedavg", "server_learning_rate": 1.0},
        "training": {"local_steps": 8, "learning_rate": 0.5, "optimizer": "sgd", "momentum": 0.0},
        "privacy": {
            "unit": "person",
            "clipping_norm": 1.0,
            "noise_multiplier": 1.5,
            "sample_rate": 0.1,
            "delta": 1e-5,
        },
        "evaluation": {"every": 3, "bins": 20, "noise_multiplier": 6.0},
        "secure_aggregation": {"bits": 32, "value_range": 8.0},
        "deadlines": {"round_seconds": 60.0, "leg_seconds": 20.0},
    }
    left_out = [name for name, value in changes.items() if value is None and "__" not in name]
    for name, value in changes.items():
        if name in left_out:
            continue
        section, field = name.split("__")
        raw.setdefault(section, {})[field] = value
    return Plan.model_validate({name: raw[name] for name in raw if name not in left_out})
