"""Missing values: one imputer for all sites against each site's own, and against dropping rows.

Six sites of the RAND Health Insurance Experiment, with 30 % of the values of six columns taken out:
"random" by what is observed (women and children are asked less), at the same rates everywhere;
"uneven" at a rate of its own at each site, from 5 % to 55 %. Federated: the statistics come from
one noised secure sum. Local: each site fills and scales by its own exact means and deviations, for
which nobody pays. Dropping: only whole rows are trained on. All train by the same private plan, and
are judged on the same held-out people, whose values are missing in the same way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Row, say
from benchmarks.utility.report import Amount, interval
from fedflow.crypto.csprng import Csprng
from fedflow.learning.evaluation import exact_score
from fedflow.learning.methods.moments import largest_norm
from fedflow.learning.model_file import unflatten
from fedflow.learning.plan import Plan
from fedflow.learning.plan_sections import ColumnSection, PreprocessingSection
from fedflow.learning.preprocessing import Prepared, prepared_data
from fedflow.learning.randhie import partition_sites, vendored_table
from fedflow.learning.statistics import section_of, statistics_of
from fedflow.learning.workload import PersonData, Persons
from fedflow.privacy.plan_cost import plan_cost
from fedflow.simulation.federation import Federation
from fedflow.workloads.tabular import Categorical, Numeric, Tabular

SEEDS, ROUNDS = 10, 40
RATE = 0.3
UNEVEN = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55)  # by site, 30 % in the mean
HOLES = ("xage", "income", "educdec", "num", "mhi", "disea")
_YES_NO = ("0", "1")
_WHOLE = dict.fromkeys(("year", "female", "child", "hlthg", "hlthf", "hlthp"), _YES_NO)
_WHOLE |= {"year": ("1", "2", "3", "4", "5"), "coins": ("0", "25", "50", "95", "100")}
TABLE = Tabular(
    "randhie-holes",
    unit_column="zper",
    label="any_visit",
    columns=[
        Numeric("xage", 0, 66),
        Numeric("income", 0, 30_000),
        Numeric("educdec", 0, 25),
        Numeric("num", 1, 20),
        Numeric("mhi", 0, 100),
        Numeric("disea", 0, 60),
        Numeric("physlm", 0, 1, missing=False),
        Numeric("black", 0, 1, missing=False),
        *(Categorical(name, values=values, missing=False) for name, values in _WHOLE.items()),
    ],
    reference_persons=800,
    model="mlp",
    max_rows=5,
    score_range=(0.3, 0.95),
)
_SUMMED = {"unit": "person", "mechanism": "summed", "delta": 1e-5}
_COMMON = {
    "cohort": {"minimum": 4, "colluders": 1},
    "training": {"local_steps": 1},
    "secure_aggregation": {"bits": 32, "value_range": "auto"},
    "deadlines": {"round_seconds": 8.0, "leg_seconds": 8.0},
}
DESCRIBING = Plan.model_validate(
    _COMMON
    | {
        "plan": {"name": "describe", "workload": TABLE.name, "rounds": 1},
        "strategy": {"name": "moments"},
        "method": {"bins": 32},
        "privacy": _SUMMED
        | {
            "clipping_norm": largest_norm(TABLE.columns),
            "noise_multiplier": 4.06,
            "sample_rate": 1.0,
        },
    }
)
TRAINING = Plan.model_validate(
    _COMMON
    | {
        "plan": {"name": "train", "workload": TABLE.name, "rounds": ROUNDS},
        "strategy": {
            "name": "fedsgd",
            "server_learning_rate": 2.0,
            "server_momentum": 0.9,
        },
        "privacy": _SUMMED | {"clipping_norm": 1.0, "noise_multiplier": 2.75, "sample_rate": 0.25},
        "evaluation": {"every": 1_000, "bins": 10, "noise_multiplier": 4.5},
    }
)
Sites = Mapping[str, PersonData]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Exact AUC of each way on all held-out people, in points, and the share of whole rows."""

    federated: float
    local: float
    dropping: float
    whole: float


def missing_rows(amount: Amount) -> Iterator[Row]:
    """Both ways of missing, each with the scores and the differences between ways."""
    seeds, rounds = amount.seeds(SEEDS), amount.rounds(ROUNDS)
    sites = _load()
    paid = plan_cost(DESCRIBING).total.train_epsilon
    training = plan_cost(TRAINING).total.train_epsilon
    for how in ("random", "uneven"):
        found = [_scores(sites, how, seed, rounds) for seed in range(seeds)]
        size = f"RAND HIE, 6 sites, 30 % of 6 columns missing ({how}), {rounds} rounds"
        privacy = f"training at epsilon {training:.2f} per person, delta 1e-5"
        stated = f"statistics at epsilon {paid:.2f}; {privacy}"
        ways = (
            ("federated", stated),
            ("local", f"own exact means, not private; {privacy}"),
            ("dropping", f"{fmean(f.whole for f in found):.1%} of rows are whole; {privacy}"),
        )
        for way, note in ways:
            runs = tuple(float(getattr(each, way)) for each in found)
            yield Row(f"imputation_{way}_auc_{how}", "points", runs, size=size, note=note)
        for other in ("local", "dropping"):
            runs = tuple(each.federated - getattr(each, other) for each in found)
            name = f"imputation_federated_minus_{other}_{how}"
            yield Row(name, "points", runs, size=size, note=f"{interval(runs)}; {stated}")


def _scores(sites: Sites, how: str, seed: int, rounds: int) -> Scores:
    csprng = Csprng.from_seed(seed.to_bytes(32, "big"))
    holed = {label: _holed(data, at, how, csprng) for at, (label, data) in enumerate(sites.items())}
    section = _federated_section(list(holed.values()), csprng.child("statistics"))
    shared = [_prepare(data, section) for data in holed.values()]
    own = [_prepare(data, _local_section(data.train)) for data in holed.values()]
    whole = [
        PersonData(_whole_rows(data.train, ready.train), ready.holdout)
        for data, ready in zip(holed.values(), shared, strict=True)
    ]
    left = [
        sum(int(site.train.mask.sum()) for site in group) for group in (whole, list(holed.values()))
    ]
    key = csprng.bytes(32)  # the three differ in their data alone
    trained = (_auc(parts, rounds, Csprng.from_seed(key)) for parts in (shared, own, whole))
    scores = Scores(*trained, whole=left[0] / left[1])
    say(f"{how}, seed {seed}: {scores}")
    return scores


def _holed(data: PersonData, site: int, how: str, csprng: Csprng) -> PersonData:
    return PersonData(*(_without(part, site, how, csprng) for part in (data.train, data.holdout)))


def _without(persons: Persons, site: int, how: str, csprng: Csprng) -> Persons:
    """``persons`` with missing values; which of them depends on nothing that is taken out."""
    names = [column.name for column in TABLE.columns]
    rates = np.full(persons.mask.shape, UNEVEN[site])
    if how == "random":
        asked = persons.x[..., names.index("female")] + persons.x[..., names.index("child")]
        rates = RATE * np.choose(asked.astype(int), (0.5, 1.0, 1.75))
    x = persons.x.copy()
    for name in HOLES:
        words = np.frombuffer(csprng.bytes(8 * rates.size), "<u8").reshape(rates.shape)
        x[..., names.index(name)][words < rates * 2.0**64] = np.nan
    return replace(persons, x=x)


def _federated_section(sites: list[PersonData], csprng: Csprng) -> PreprocessingSection:
    made = Federation(TABLE, sites, DESCRIBING, csprng, secure=False)
    made.round()
    state = unflatten(made.state, made.spec)
    return section_of(statistics_of(TABLE, state, DESCRIBING, sites=len(sites)))


def _local_section(persons: Persons) -> PreprocessingSection:
    """What a site would write for itself: exact, and told to nobody."""
    columns = []
    for at, column in enumerate(TABLE.columns):
        values = persons.x[..., at][persons.mask].astype(np.float64)
        if column.categories:
            columns.append(ColumnSection(name=column.name, fill=float(column.other)))
            continue
        mean, deviation = float(np.nanmean(values)), max(float(np.nanstd(values)), 1e-3)
        columns.append(ColumnSection(name=column.name, fill=mean, centre=mean, scale=deviation))
    return PreprocessingSection(columns=tuple(columns))


def _prepare(data: PersonData, section: PreprocessingSection) -> PersonData:
    plan = TRAINING.model_copy(update={"preprocessing": section})
    return prepared_data(data, plan, TABLE)


def _whole_rows(raw: Persons, ready: Persons) -> Persons:
    """The people of ``ready`` who have rows without a missing value, with those rows."""
    mask: Bools = raw.mask & ~np.isnan(raw.x).any(axis=2)
    kept = mask.any(axis=1)
    return replace(ready, mask=mask).take(kept)


def _auc(sites: list[PersonData], rounds: int, csprng: Csprng) -> float:
    workload = Prepared(TABLE)
    made = Federation(workload, sites, TRAINING, csprng, secure=False)
    for _ in range(rounds):
        made.round()
    test = Persons.join([site.holdout for site in sites])
    return 100.0 * exact_score(workload, test, unflatten(made.state, made.spec), TRAINING)


def _load() -> Sites:
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for label, table in partition_sites(vendored_table()).items():
            path = Path(folder) / f"{label}.csv"
            # four rows lack the years of school; they are left out of this comparison
            path.write_bytes(_complete(table))
            out[label] = TABLE.load(path)
    return out


def _complete(table: bytes) -> bytes:
    lines = table.decode().splitlines()
    at = lines[0].split(",").index("educdec")
    kept = [line for line in lines if line.split(",")[at]]
    return ("\n".join(kept) + "\n").encode()
