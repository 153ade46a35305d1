"""A small synthetic site file with the columns of the packaged data, and a quick plan."""

import csv
import io

import numpy as np
from plans import make_plan

from fedflow.learning import randhie

COLUMNS = [*randhie.NUMERIC, "coins", "xage", "zper", "site", "any_visit"]


def plan_with(**changes):
    """A quick plan with fields replaced: plan_with(privacy__clipping_norm=2.0)."""
    quick = {
        "plan__rounds": 3,
        "training__local_steps": 4,
        "privacy__clipping_norm": 0.5,
        "evaluation__every": 2,
        "evaluation__bins": 10,
        "evaluation__noise_multiplier": 4.0,
    }
    return make_plan(**{**quick, **changes})


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
