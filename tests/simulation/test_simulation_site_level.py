"""Site-level privacy with hundreds of sites: a model is learnt, and the norm finds its quantile."""

import numpy as np
import pytest
from plans import make_plan

from fedflow.crypto.csprng import Csprng
from fedflow.learning.baselines import pooled_holdout
from fedflow.learning.evaluation import exact_score
from fedflow.learning.randhie import FEATURES, partition_sites, vendored_table, workload
from fedflow.learning.server_state import CLIPPING_NORM, memory_views
from fedflow.learning.workload import PersonData, Persons
from fedflow.privacy.accounting import epsilon_pld
from fedflow.privacy.plan_cost import training_event
from fedflow.simulation.federation import Federation

SITES, ROUNDS = 160, 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Everybody to train on as many small sites of equal size, and everybody held out."""
    folder, real = tmp_path_factory.mktemp("rows"), {}
    for number, rows in partition_sites(vendored_table()).items():
        (folder / number).write_bytes(rows)
        real[number] = workload.load(folder / number)
    everyone = Persons.join([data.train for data in real.values()])
    order = np.random.default_rng(1).permutation(len(everyone))
    sites = [
        PersonData(
            Persons(
                everyone.x[part],
                everyone.y[part],
                everyone.mask[part],
                tuple(everyone.ids[i] for i in part),
            ),
            real["1"].holdout,
        )
        for part in np.array_split(order, SITES)
    ]
    return sites, pooled_holdout(real)


def plan(**changes):
    return make_plan(
        **{
            "plan__rounds": ROUNDS,
            "cohort__minimum": 128,
            "cohort__colluders": 16,
            "training__local_steps": None,
            "training__local_epochs": 3,
            "training__learning_rate": 0.5,
            "strategy__server_momentum": 0.5,
            "privacy__mechanism": "site",
            "privacy__unit": "site",
            "privacy__clipping_norm": 0.3,
            "privacy__noise_multiplier": 1.8,
            "privacy__sample_rate": 1.0,
            "secure_aggregation__value_range": "auto",
            **changes,
        }
    )


def test_hundreds_of_sites_learn_a_model_that_hides_each_of_them(people):
    sites, test = people
    terms = plan()
    assert epsilon_pld([training_event(terms).repeated(ROUNDS)], 1e-5) < 8
    federation = Federation(workload, sites, terms, Csprng.from_seed(bytes(32)))
    for number in range(ROUNDS):
        opened = federation.round(drop=range(number, SITES, 10))
        assert len(opened.survivors) == SITES * 9 // 10
    # untrained .5, without privacy about .73
    assert exact_score(workload, test, federation.model(), terms) > 0.62


def test_an_adaptive_norm_climbs_from_far_below(people):
    sites, _ = people
    terms = plan(privacy__clipping_norm=0.02, privacy__clipping_quantile=0.5)
    federation = Federation(workload, sites, terms, Csprng.from_seed(bytes(32)))
    norms = []
    for _ in range(4):
        federation.round()
        (norm,) = memory_views(federation.state, terms, FEATURES)[CLIPPING_NORM]
        norms.append(float(norm))
    # nearly every update is longer: each round the norm grows by nearly 0.2 * 0.5
    for before, after in zip([0.02, *norms], norms, strict=False):
        assert 1.02 < after / before <= 1.1 + 1e-6
