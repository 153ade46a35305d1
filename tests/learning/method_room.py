"""One round after another of a method, without noise to speak of, over people that a test makes."""

from types import SimpleNamespace

import numpy as np
from learning_fixtures import plan_with

from fedflow.crypto.csprng import Csprng
from fedflow.learning.methods.clusters import first_centres
from fedflow.learning.model_file import unflatten
from fedflow.learning.workload import PersonData, Persons
from fedflow.simulation.federation import Federation

#: Almost no noise, a norm nobody reaches.
METHOD = {
    "cohort__minimum": 2,
    "cohort__colluders": 0,
    "privacy__mechanism": "summed",
    "privacy__sample_rate": 1.0,
    "privacy__clipping_norm": 20.0,
    "privacy__noise_multiplier": 1e-5,
    "training__local_steps": 1,
    "training__learning_rate": 1.0,
    "plan__rounds": 1,
    "evaluation__metric": "mse",
    "evaluation__error_bound": 4.0,
    "evaluation__bins": None,
    "secure_aggregation__value_range": "auto",
}


def workload(features, **more):
    """A workload of so many features between -1 and 1, its target too."""
    public = {"bounds": (-1.0, 1.0), "target_bounds": (-1.0, 1.0), "score_range": (0.0, 1.0)}
    public |= {"name": "made-up", "unit_column": "who", "reference_persons": 50}
    return SimpleNamespace(**{**public, "features": features, **more})


def persons(x, y=None):
    """Persons of ``x`` [P, F] with one row each, or [P, R, F] with R."""
    x = np.asarray(x, np.float32)
    x = x[:, None, :] if x.ndim == 2 else x
    y = np.zeros(x.shape[:2]) if y is None else y
    y = np.asarray(y, np.float32).reshape(x.shape[:2])
    return Persons(x, y, np.ones(x.shape[:2], bool), tuple(str(i) for i in range(len(x))))


def method_plan(**fields):
    """A valid plan of a method; ``field=None`` leaves one out."""
    return plan_with(**{**METHOD, **fields})


def trained(plan, made, everybody, rounds=None, seed=0, secure=False):
    """The federation after the plan's rounds, ``everybody`` dealt to three sites in turn."""
    parts = [
        Persons(everybody.x[i::3], everybody.y[i::3], everybody.mask[i::3], everybody.ids[i::3])
        for i in range(3)
    ]
    sites = [PersonData(part, part) for part in parts]
    found = Federation(made, sites, plan, Csprng.from_seed(bytes([seed]) * 32), secure=secure)
    for _ in range(plan.plan.rounds if rounds is None else rounds):
        found.round()
    return found


def state_of(found):
    """The tensors of its model file."""
    return unflatten(found.state, found.spec)


def uniform(shape, seed=0):
    """Public numbers between -1 and 1."""
    drawn = Csprng.from_seed(bytes([seed + 1]) * 32).uniform(int(np.prod(shape)))
    return 2.0 * drawn.reshape(shape) - 1.0


#: Of three blobs that are well apart.
MIDDLES = ((-0.6, -0.6), (0.6, -0.6), (0.0, 0.7))


def well_started(plan_of, **fields):
    """The first of differently named plans whose first centres are not two in one blob.

    From others Lloyd's steps may end with two blobs in one cluster, as they do everywhere.
    """
    for start in range(200):
        plan = plan_of(plan__name=f"start-{start}", **fields)
        away = np.linalg.norm(first_centres(plan, 2)[:, None] - np.array(MIDDLES), axis=2)
        if set(away.argmin(axis=0)) == set(range(3)):
            return plan
    raise AssertionError("no start of 200 has a centre for each blob")


def blobs(per_blob=90, middles=MIDDLES, seed=0):
    """Points float64[N, F] near each of ``middles``, and which each belongs to."""
    middles = np.asarray(middles)
    away = 0.1 * uniform((len(middles), per_blob, middles.shape[1]), seed)
    points = middles[:, None, :] + away
    return points.reshape(-1, middles.shape[1]), np.repeat(np.arange(len(middles)), per_blob)
