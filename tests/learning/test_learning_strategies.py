"""Each strategy does what it is for: on sites whose data pull apart, where FedAvg errs.

Two sites fit a line each: site A has its optimum at +1 with steep curvature, site B at -1 with
flat curvature, in one coordinate; with many local steps FedAvg ends between the two sites' optima,
and not at the optimum of the sum of their losses. Without sampling, hardly any noise.
"""

import numpy as np
import pytest
import torch
from learning_fixtures import plan_with

from fedflow.crypto.csprng import Csprng
from fedflow.learning.dpsgd import train_private
from fedflow.learning.model_file import decode_model, encode_model, flatten
from fedflow.learning.server_state import CONTROL, initial_state, memory_views, parameters
from fedflow.learning.site_state import after_round, correction, site_spec
from fedflow.learning.workload import PersonData, Persons, initial_model, model_spec
from fedflow.simulation.federation import Federation

PERSONS = 10
QUIET = {
    "cohort__minimum": 2,
    "cohort__colluders": 0,
    "plan__rounds": 60,
    "privacy__clipping_norm": 1e3,
    "privacy__noise_multiplier": 1e-9,
    "privacy__sample_rate": 1.0,
    "training__learning_rate": 0.05,
    "training__local_steps": 30,
    "strategy__server_learning_rate": 1.0,
}
SCAFFOLD = {**QUIET, "strategy__name": "scaffold"}


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1, bias=False)
        torch.nn.init.zeros_(self.line.weight)

    def forward(self, x):
        return self.line(x).squeeze(-1)


class Task:
    """A person's loss is (w x - y)² / 2: the optimum of a site is y/x, its curvature x²."""

    name, unit_column, reference_persons, score_range = "task", "who", PERSONS, (0.0, 1.0)

    def build_model(self):
        return Line()

    def load(self, path):
        raise NotImplementedError

    def loss(self, scores, y):
        return (scores - y) ** 2 / 2


def site(slope, optimum):
    x = np.full((PERSONS, 1, 1), slope, np.float32)
    y = np.full((PERSONS, 1), slope * optimum, np.float32)
    one = Persons(x, y, np.ones((PERSONS, 1), bool), tuple(map(str, range(PERSONS))))
    return PersonData(one, one)


STEEP, FLAT = site(2.0, 1.0), site(0.5, -1.0)
OPTIMUM = (4.0 * 1.0 + 0.25 * -1.0) / 4.25  # of the sum of both losses: 0.882


def trained(fields, rounds, secure=False, sites=(STEEP, FLAT), **drop):
    federation = Federation(
        Task(), sites, plan_with(**fields), Csprng.from_seed(bytes(32)), secure=secure
    )
    for number in range(rounds):
        federation.round(**drop if number == 0 else {})
    return federation


def weight(federation):
    return float(federation.model()["line.weight"][0, 0])


def test_fedavg_ends_away_from_the_optimum_and_scaffold_at_it():
    fedavg, scaffold = weight(trained(QUIET, 60)), weight(trained(SCAFFOLD, 60))
    assert abs(fedavg - OPTIMUM) > 0.2
    assert scaffold == pytest.approx(OPTIMUM, abs=0.01)


def test_scaffold_under_masks_is_scaffold():
    three = (STEEP, FLAT, FLAT)
    plain, masked = (trained(SCAFFOLD, 6, secure=s, sites=three) for s in (False, True))
    assert weight(masked) == pytest.approx(weight(plain), abs=1e-5)


def test_scaffold_keeps_what_the_paper_keeps():
    """c is the mean of all c_i, and each c_i is the site's mean gradient over its local steps."""
    federation = trained(SCAFFOLD, 5)
    control = memory_views(federation.state, federation.plan, 1)[CONTROL]
    own = [kept[CONTROL][0] for kept in federation._own]
    assert float(control[0]) == pytest.approx(np.mean(own), abs=1e-5)
    # At the optimum the gradients of the two sites cancel and neither is zero.
    at = trained(SCAFFOLD, 60)
    own = [float(kept[CONTROL][0]) for kept in at._own]
    assert own[0] == pytest.approx(4.0 * (OPTIMUM - 1.0), abs=0.02)
    assert own[1] == pytest.approx(0.25 * (OPTIMUM + 1.0), abs=0.02)


def test_a_site_that_missed_a_round_keeps_its_control_variate():
    sites = (STEEP, FLAT, FLAT)
    federation = trained(SCAFFOLD, 1, sites=sites, drop=[2])
    assert federation._own[2] is None
    control = memory_views(federation.state, federation.plan, 1)[CONTROL]
    own = [float(kept[CONTROL][0]) for kept in federation._own[:2]]
    assert float(control[0]) == pytest.approx(sum(own) / 3, abs=1e-5)


def test_fedprox_stays_nearer_to_the_global_model():
    steps = {}
    for mu in (0.0, 1.0, 10.0):
        fields = {**QUIET, "training__proximal": mu, "training__local_steps": 200}
        steps[mu] = weight(trained(fields, 1, sites=(STEEP, STEEP)))
    assert steps[0.0] == pytest.approx(1.0, abs=1e-3)  # the site's optimum
    assert steps[1.0] == pytest.approx(4.0 / 5.0, abs=1e-3)  # of (w - 1)² 4/2 + w²/2
    assert steps[10.0] == pytest.approx(4.0 / 14.0, abs=1e-3)


def test_fedprox_ends_nearer_to_the_optimum_than_fedavg():
    fedavg = weight(trained(QUIET, 60))
    fedprox = weight(trained({**QUIET, "training__proximal": 4.0}, 120))
    assert abs(fedprox - OPTIMUM) < 0.6 * abs(fedavg - OPTIMUM)


@pytest.mark.parametrize("kind", ["adam", "yogi", "adagrad"])
def test_adaptive_servers_step_by_size_not_by_scale(kind):
    """Updates a hundred times smaller move FedAvg a hundred times less, and these hardly less."""
    fields = {
        **QUIET,
        "strategy__server_optimizer": kind,
        "strategy__server_learning_rate": 0.05,
        "strategy__server_adaptivity": 1e-4,
        "secure_aggregation__value_range": 1.0,
    }
    moved, plainly = [], []
    for rate in (0.05, 0.0005):
        small = {**fields, "training__learning_rate": rate, "training__local_steps": 2}
        moved.append(weight(trained(small, 3)))
        small |= {"strategy__server_optimizer": "sgd", "strategy__server_learning_rate": 1.0}
        plainly.append(weight(trained(small, 3)))
    assert plainly[0] > 50 * plainly[1]
    assert moved[0] < 1.5 * moved[1]
    assert moved[0] == pytest.approx(0.05 * 3, rel=0.6)


def test_a_correction_is_added_to_every_step():
    fields = {**QUIET, "training__local_steps": 3}
    start = initial_model(Task())
    plan, csprng = plan_with(**fields), Csprng.from_seed(bytes(32))
    plain = train_private(Task(), FLAT, start, plan, csprng)
    pushed = train_private(Task(), FLAT, start, plan, csprng, correction=np.array([0.5]))
    w = p = 0.0
    for _ in range(3):
        w -= 0.05 * 0.25 * (w + 1.0)
        p -= 0.05 * (0.25 * (p + 1.0) + 0.5)
    assert plain[0] == pytest.approx(w, abs=1e-5)
    assert pushed[0] == pytest.approx(p, abs=1e-5)


class AdaptedLine(Line):
    """A frozen layer before the trained one, as under an adapter."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1, bias=False)
        torch.nn.init.constant_(self.frozen.weight, 2.0)
        self.frozen.weight.requires_grad_(False)

    def forward(self, x):
        return self.line(self.frozen(x)).squeeze(-1)


class Adapted(Task):
    def build_model(self):
        return AdaptedLine()


def test_what_is_frozen_does_not_travel():
    assert list(initial_model(Adapted())) == ["line.weight"]
    plan = plan_with(**{**QUIET, "training__local_steps": 200})
    federation = Federation(Adapted(), (STEEP, STEEP), plan, Csprng.from_seed(bytes(32)))
    federation.round()
    assert federation.dimension == 1
    # The frozen layer doubles what comes in, so half the weight is the optimum.
    assert weight(federation) == pytest.approx(0.5, abs=1e-3)


def test_what_a_site_keeps_is_a_file_like_any_model():
    plan = plan_with(**SCAFFOLD)
    spec = site_spec(model_spec(Task()), plan)
    state = initial_state(initial_model(Task()), plan)
    trained = np.array([0.3], np.float32)
    kept = after_round(state, None, trained, plan, sites=3, value_range=8.0)
    assert flatten(kept)[0] == pytest.approx(-0.3 / (30 * 0.05))
    again = decode_model(encode_model(kept), spec)
    assert correction(state, again)[0] == pytest.approx(0.2)
    assert correction(parameters(state), again) is None, "no SCAFFOLD, no correction"
    assert site_spec(model_spec(Task()), plan_with(**QUIET)) is None
