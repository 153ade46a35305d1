"""Made-up sites of a small table, and plans that describe it and train on it."""

import csv
import io

import numpy as np
from plans import make_plan

from fedflow.crypto.csprng import Csprng
from fedflow.learning.model_file import unflatten
from fedflow.learning.statistics import section_of, statistics_of
from fedflow.simulation.federation import Federation
from fedflow.workloads.tabular import Categorical, Numeric, Tabular

COLUMNS = ("who", "ill", "age", "ward", "code")
WORKLOAD = Tabular(
    "stays",
    unit_column="who",
    label="ill",
    columns=[
        Numeric("age", 0, 100),
        Categorical("ward", values=("a", "b", "c")),
        Categorical("code", buckets=4, missing=False),
    ],
    reference_persons=60,
    max_rows=2,
)
DESCRIBING = {
    "plan__workload": "stays",
    "plan__rounds": 1,
    "strategy__name": "moments",
    "method__bins": 20,
    "cohort__minimum": 2,
    "cohort__colluders": 0,
    "evaluation": None,
    "privacy__mechanism": "summed",
    "privacy__sample_rate": 1.0,
    "privacy__clipping_norm": 3.0,
    "privacy__noise_multiplier": 1e-4,
    "training__local_steps": 1,
    "training__learning_rate": 1.0,
    "secure_aggregation__value_range": "auto",
}


def describing(**fields):
    return make_plan(**{**DESCRIBING, **fields})


def training(section, **fields):
    """A plan that trains on prepared data."""
    base = {"plan__workload": "stays", "plan__rounds": 2, "cohort__minimum": 2}
    made = make_plan(**{**base, "cohort__colluders": 0, "training__local_steps": 2, **fields})
    return made.model_copy(update={"preprocessing": section})


def rows_of(site, persons=60):
    """Rows of a site whose people are the older, and the more often unknown, the higher ``site``.

    All persons have two rows; in each the age, or the ward, may be an empty cell.
    """
    rows = []
    for person in range(persons):
        for year in range(2):
            age = (7 * person + 3 * year) % 20 + 20 * site
            known = (person + year) % (5 - site) > 0
            ward = "abca"[(person + site) % 4] if person % 7 else ""
            cells = [f"{site}-{person}", person % 2, age if known else "", ward, f"c{person % 3}"]
            rows.append(dict(zip(COLUMNS, map(str, cells), strict=True)))
    return rows


def write(path, rows, columns=COLUMNS):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path


def load_sites(folder, workload=WORKLOAD, sites=3):
    return [workload.load(write(folder / f"{n}.csv", rows_of(n))) for n in range(sites)]


def run(sites, plan, workload=WORKLOAD, seed=0, secure=False):
    """The state that a simulated federation ends with."""
    csprng = Csprng.from_seed(seed.to_bytes(32, "big"))
    made = Federation(workload, sites, plan, csprng, secure=secure)
    for _ in range(plan.plan.rounds):
        made.round()
    return unflatten(made.state, made.spec)


def found(sites, plan, workload=WORKLOAD, **options):
    return statistics_of(workload, run(sites, plan, workload, **options), plan, sites=len(sites))


def section(sites, **fields):
    return section_of(found(sites, describing(**fields)))


def weighted(sites, at):
    """Values of one column over all training rows, and what each row weighs."""
    parts = [site.train for site in sites]
    values = np.concatenate([p.x[:, :, at][p.mask] for p in parts]).astype(np.float64)
    shares = [(p.mask / p.mask.sum(axis=1, keepdims=True))[p.mask] for p in parts]
    return values, np.concatenate(shares)
