"""A small synthetic site file with the columns of the packaged data, and a quick plan."""

import csv
import io

import numpy as np

from fedflow.learning import randhie
from fedflow.learning.plan import Plan

COLUMNS = [*randhie.NUMERIC, "coins", "xage", "zper", "site", "any_visit"]


def plan_with(**changes):
    """The packaged plan with fields replaced: plan_with(privacy__clipping_norm=2.0)."""
    text = {
        "plan": {"name": "t", "workload": "randhie", "rounds": 3},
        "cohort": {"minimum": 4, "colluders": 1},
        "strategy": {"name": "fedavg", "server_learning_rate": 1.0},
        "training": {
            "local_steps": 4,
            "learning_rate": 0.5,
            "optimizer": "sgd",
            "momentum": 0.0,
        },
        "privacy": {
            "unit": "person",
            "clipping_norm": 0.5,
            "noise_multiplier": 1.5,
            "sample_rate": 0.1,
            "delta": 1e-5,
        },
        "evaluation": {"every": 2, "bins": 10, "noise_multiplier": 4.0},
        "secure_aggregation": {"bits": 32, "value_range": 8.0},
        "deadlines": {"round_seconds": 60.0, "leg_seconds": 30.0},
    }
    for key, value in changes.items():
        section, field = key.split("__")
        text[section][field] = value
    return Plan.model_validate(text)


def site_rows(persons=60, seed=0):
    """Rows (dicts of text) of made-up persons with one to five years each."""
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(persons):
        base = {name: f"{rng.uniform(0, 1):.3f}" for name in COLUMNS}
        base |= {"zper": str(1000 + person), "site": "1", "xage": f"{rng.uniform(0, 64):.2f}"}
        for year in range(1, int(rng.integers(1, 6)) + 1):
            visit = str(int(rng.uniform() < 0.1 + 0.8 * float(base["female"])))
            rows.append(base | {"year": str(year), "any_visit": visit})
    return rows


def write_csv(path, rows, columns=COLUMNS):
    """Write rows as CSV and return the path."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path
