"""Private regression on Boston housing against nearest neighbours that see all the data.

A unit is a census tract; sites are six groups of neighbouring towns. Folds are whole towns, so a
tract is judged by what other towns say of it, as a new town would be; folds of single tracts, where
neighbours know the columns that a town's tracts share, are a row of their own. Features are public
functions of the columns (:data:`benchmarks.data.boston.COLUMNS`), bounds and all; which functions
was chosen by hand, with the literature and this data set known (Harrison and Rubinfeld, 1978), and
so were norms and least squares' weight of X'y, on folds of other seeds: figures are flattered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.boston import CENTRE, COLUMNS, SCALE, load_boston
from benchmarks.figures import Row, say
from benchmarks.utility.report import Amount, interval
from fedflow.crypto.csprng import Csprng
from fedflow.learning.evaluation import exact_score
from fedflow.learning.model_file import unflatten
from fedflow.learning.plan import Plan
from fedflow.learning.workload import PersonData, Persons
from fedflow.privacy.accounting import epsilon_rdp
from fedflow.privacy.plan_cost import training_event
from fedflow.simulation.federation import Federation
from fedflow.simulation.partition import shuffled

#: Tracts of each of the 92 towns in the file's order, which follows the map (Gilley and Pace, 1996,
#: column "town" of BostonHousing2 in R's mlbench, which has the same rows).
TOWNS = (
    *(1, 2, 3, 7, 22, 4, 2, 9, 4, 1, 1, 1, 1, 6, 1, 2, 3, 4, 6, 4, 4, 4, 3, 5, 11, 9, 7, 15, 30, 7),
    *(8, 6, 2, 1, 3, 2, 2, 2, 11, 4, 18, 6, 10, 2, 1, 12, 5, 5, 4, 1, 1, 1, 1, 3, 3, 5, 3, 3, 4),
    *(12, 8, 3, 2, 8, 1, 1, 2, 2, 1, 1, 2, 2, 1, 2, 8, 6, 3, 2, 6, 12, 13, 8, 19, 23, 11, 6, 7, 4),
    *(4, 5, 8, 5),
)
SITES, FOLDS, INNER_FOLDS = 6, 10, 5
EPSILONS, DELTA = (8.0, 3.0, 1.0), 1e-4
NEIGHBOURS = (1, 2, 3, 4, 5, 7, 9, 12, 15, 20)
Real = NDArray[np.float64]
Folds = list[NDArray[np.int64]]


@dataclass(frozen=True)
class Tracts:
    """``x`` float32[N, F] within ±``bound`` and values float32[N] in thousands of dollars."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    bound: float
    name = "boston"
    unit_column = "tract"
    reference_persons = len(COLUMNS) * 7
    score_range = (0.0, 1.0)
    target_bounds = (0.0, 2 * CENTRE)

    @property
    def features(self) -> int:
        """Columns of ``x``."""
        return self.x.shape[1]

    @property
    def bounds(self) -> tuple[float, float]:
        """Where they lie."""
        return -self.bound, self.bound

    def persons(self, rows: NDArray[np.int64]) -> Persons:
        """Those tracts, each a unit of its own."""
        ids = tuple(str(row) for row in rows)
        mask = np.ones((len(rows), 1), np.bool_)
        return Persons(self.x[rows][:, None], self.y[rows][:, None], mask, ids)


@dataclass(frozen=True)
class Regressor:
    """A method with the public choices it is run with."""

    name: str
    rich: bool
    norm: float
    rounds: int = 1
    clusters: int | None = None

    def plan(self, noise: float) -> Plan:
        """Its plan at a noise multiplier."""
        found = {"clusters": self.clusters, "neighbours": self.clusters and 4}
        return Plan.model_validate(
            {
                "plan": {"name": "boston", "workload": "boston", "rounds": self.rounds},
                "cohort": {"minimum": SITES, "colluders": 1},
                "strategy": {"name": "prototypes" if self.clusters else "linear"},
                "method": {name: size for name, size in found.items() if size is not None},
                "training": {"local_steps": 1},
                "privacy": {
                    "mechanism": "summed",
                    "unit": "record",
                    "clipping_norm": self.norm,
                    "noise_multiplier": noise,
                    "sample_rate": 1.0,
                    "delta": DELTA,
                },
                "evaluation": {
                    "every": self.rounds,
                    "metric": "mse",
                    "error_bound": 2500.0,
                    "noise_multiplier": 1.0,
                },
                "secure_aggregation": {"bits": 32, "value_range": "auto"},
                "deadlines": {"round_seconds": 60.0, "leg_seconds": 60.0},
            }
        )

    def noise(self, epsilon: float) -> float:
        """The least noise multiplier at which its rounds cost no more than ``epsilon``."""
        low, high = 0.05, 200.0
        for _ in range(40):
            middle = (low * high) ** 0.5
            event = training_event(self.plan(middle)).repeated(self.rounds)
            low, high = (middle, high) if epsilon_rdp([event], DELTA) > epsilon else (low, middle)
        return high


RICH = Regressor("linear_rich", True, 0.7)
REGRESSORS = (
    RICH,
    Regressor("linear", False, 0.7),
    Regressor("prototypes", False, 0.7, rounds=3, clusters=32),
)


def features(x: NDArray[np.float32], rich: bool) -> NDArray[np.float32]:
    """Public functions of the scaled columns: float32[N, 7], or [N, 21] with products."""
    column = {
        name: x[:, at] * scale + centre
        for at, (name, (centre, scale)) in enumerate(COLUMNS.items())
    }
    scaled = dict(zip(COLUMNS, x.T, strict=True))
    poor = np.log(np.maximum(column["LSTAT"], 1.0) / 12.0)
    rooms, pupils, tax, nox = (scaled[name] for name in ("RM", "PTRATIO", "TAX", "NOX"))
    away = np.log(np.maximum(column["DIS"], 0.5)) - 1.2
    crime = (np.log(np.maximum(column["CRIM"], 0.005)) + 1.0) / 3.0
    found = [poor, rooms, pupils, away, nox, crime, rooms**2 - 0.5]
    if rich:
        roads = np.log(np.maximum(column["RAD"], 1.0)) - 1.9
        found += [scaled["CHAS"], tax, scaled["B"], rooms * poor, roads, poor**2 - 0.3]
        found += [crime * poor, rooms * pupils, rooms * tax, away * poor, nox * away]
        found += [np.maximum(rooms - 0.7, 0.0), scaled["AGE"], scaled["ZN"]]
    return np.clip(np.stack(found, axis=1), -2.0, 2.0).astype(np.float32)


def town_of() -> NDArray[np.int64]:
    """The number of each tract's town, int64[506]."""
    return np.repeat(np.arange(len(TOWNS)), TOWNS)


def site_of(town: NDArray[np.int64]) -> NDArray[np.int64]:
    """Neighbouring towns to sites of about as many tracts; no town is divided."""
    middle = np.cumsum(TOWNS) - np.array(TOWNS) / 2
    return np.minimum((middle * SITES / sum(TOWNS)).astype(np.int64), SITES - 1)[town]


def folds(groups: NDArray[np.int64], count: int, csprng: Csprng) -> Folds:
    """Rows of each fold: groups in a random order, each to the fold that has the fewest rows."""
    out: Folds = [np.zeros(0, np.int64) for _ in range(count)]
    names = np.unique(groups)
    for at in shuffled(len(names), csprng):
        least = min(range(count), key=lambda fold: len(out[fold]))
        out[least] = np.concatenate([out[least], np.flatnonzero(groups == names[at])])
    return out


def private_mse(
    regressor: Regressor, epsilon: float, parts: Folds, town: NDArray[np.int64], seed: bytes
) -> float:
    """Mean squared error over all folds, thousands of dollars squared, by the sites' own code."""
    x, y = load_boston()
    tracts = Tracts(features(x, regressor.rich), y * np.float32(SCALE) + np.float32(CENTRE), 2.0)
    plan, sites = regressor.plan(regressor.noise(epsilon)), site_of(town)
    errors, generator = 0.0, Csprng.from_seed(seed)
    for test in parts:
        train = np.setdiff1d(np.arange(len(y)), test)
        nobody = tracts.persons(test[:0])
        held = [
            PersonData(tracts.persons(train[sites[train] == site]), nobody) for site in range(SITES)
        ]
        made = Federation(tracts, held, plan, generator)  # type: ignore[arg-type]
        for _ in range(plan.plan.rounds):
            made.round()
        state = unflatten(made.state, made.spec)
        score = exact_score(tracts, tracts.persons(test), state, plan)  # type: ignore[arg-type]
        errors += score * len(test)
    return errors / len(y)


def neighbours_mse(parts: Folds, groups: NDArray[np.int64], csprng: Csprng) -> float:
    """That of nearest neighbours on all the data, their number and weights by inner folds."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsRegressor

    x, y = load_boston()
    errors = 0.0
    for test in parts:
        train = np.setdiff1d(np.arange(len(y)), test)
        inner = folds(groups[train], INNER_FOLDS, csprng)
        splits = [(np.setdiff1d(np.arange(len(train)), each), each) for each in inner]
        choice = {"n_neighbors": NEIGHBOURS, "weights": ("uniform", "distance")}
        search = GridSearchCV(
            KNeighborsRegressor(), choice, scoring="neg_mean_squared_error", cv=splits
        ).fit(x[train], y[train])
        errors += float(((search.predict(x[test]) - y[test]) ** 2).sum())
    return errors / len(y) * SCALE**2


def boston_rows(amount: Amount) -> Iterator[Row]:
    """Errors of each method at each epsilon, and the best one's over that of neighbours."""
    town, seeds = town_of(), amount.seeds(10)
    for how, groups in (("towns", town), ("tracts", np.arange(len(town)))):
        size = f"506 tracts, {FOLDS} folds of {how}, {SITES} sites, unit a tract, delta {DELTA:g}"
        drawn = [Csprng.from_seed(seed.to_bytes(32, "big")) for seed in range(seeds)]
        parts = [folds(groups, FOLDS, csprng) for csprng in drawn]
        pairs = zip(parts, drawn, strict=True)
        knn = [neighbours_mse(part, groups, csprng) for part, csprng in pairs]
        note = f"without privacy, all data in one place; {interval(knn)}"
        yield Row(f"boston_mse_knn_{how}", "", tuple(knn), size=size, note=note)
        for epsilon in EPSILONS:
            for regressor in REGRESSORS:
                found = [
                    private_mse(regressor, epsilon, part, town, (seed + 500).to_bytes(32, "big"))
                    for seed, part in enumerate(parts)
                ]
                say(f"{regressor.name} {how} {epsilon:g}: {interval(found)}")
                name = f"boston_mse_{regressor.name}_{how}_eps{epsilon:g}"
                yield Row(name, "", tuple(found), size=size, note=interval(found))
                if regressor is RICH:
                    yield _ratio(epsilon, how, found, knn, size, judged=not amount.quick)


def _ratio(
    epsilon: float, how: str, found: list[float], knn: list[float], size: str, *, judged: bool
) -> Row:
    over = tuple(ours / theirs for ours, theirs in zip(found, knn, strict=True))
    name = "boston_mse_over_knn" + ("" if how == "towns" else f"_{how}")
    first = epsilon == EPSILONS[0]
    return Row(
        name if first else f"{name}_eps{epsilon:g}",
        "x",
        over,
        bar="<= 1.0",
        size=size,
        note=f"linear_rich, epsilon {epsilon:g}; {interval(over)}",
        judged=judged,
    )
