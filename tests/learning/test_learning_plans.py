"""The example plans: each is valid, says what it is, and trains the packaged data."""

import pytest

from fedflow.crypto.csprng import Csprng
from fedflow.learning import randhie
from fedflow.learning.baselines import pooled_holdout
from fedflow.learning.evaluation import exact_score
from fedflow.learning.plan import load_plan
from fedflow.simulation.federation import Federation

#: A plan's file -> the fields that make it what its name says.
DISTINCT = {
    "randhie": {"strategy__name": "fedavg"},
    "randhie-summed": {"strategy__name": "fedsgd", "privacy__mechanism": "summed"},
    "fedprox": {"training__proximal": 0.1},
    "fedadam": {"strategy__server_optimizer": "adam"},
    "fedyogi": {"strategy__server_optimizer": "yogi"},
    "fedadagrad": {"strategy__server_optimizer": "adagrad"},
    "scaffold": {"strategy__name": "scaffold"},
    "fedbuff": {"strategy__name": "fedbuff", "strategy__buffer": 4},
    "cohorts": {"participation__fraction": 0.8, "stopping__target": 0.70},
    "robust-loss": {"training__robust_loss": 0.5, "training__class_weights": (1.4, 0.8)},
    "robust-groups": {"participation__groups": 3},
    "sparse": {"secure_aggregation__density": 0.5, "secure_aggregation__bits": 16},
}
#: In "cohorts" who is asked is the coordinator's; "robust-groups" needs nine sites.
TRAINED = [name for name in DISTINCT if name not in ("cohorts", "robust-groups")]


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("sites"), []
    for name, data in randhie.partition_sites(randhie.vendored_table()).items():
        path = folder / f"{name}.csv"
        path.write_bytes(data)
        found.append(randhie.workload.load(path))
    return found


def plan_named(request, name):
    return load_plan(request.config.rootpath / "flows" / "plans" / f"{name}.toml")


@pytest.mark.parametrize("name", DISTINCT)
def test_a_plan_is_what_its_name_says(request, name):
    plan = plan_named(request, name)
    for field, value in DISTINCT[name].items():
        section, key = field.split("__")
        assert getattr(getattr(plan, section), key) == value
    assert plan.plan.name == name


def test_every_plan_is_in_the_readme(request):
    root = request.config.rootpath
    text = (root / "README.md").read_text()
    for path in (root / "flows" / "plans").glob("*.toml"):
        assert path.name in text or path.stem == "trivial", path.name


def test_lists_of_a_plan_are_read(tmp_path, request):
    text = (request.config.rootpath / "flows" / "plans" / "cohorts.toml").read_text()
    text = text.replace("[participation]\n", '[participation]\nstrata = ["north-*", "site-1"]\n')
    (tmp_path / "plan.toml").write_text(text)
    assert load_plan(tmp_path / "plan.toml").participation.strata == ("north-*", "site-1")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_plan_learns(request, sites, name):
    plan = plan_named(request, name)
    federation = Federation(randhie.workload, sites, plan, Csprng.from_seed(bytes(32)))
    for _ in range(4):
        federation.round()
    score = exact_score(
        randhie.workload,
        pooled_holdout(dict(enumerate(sites))),
        federation.model(),
        plan,
    )
    assert score > (0.55 if name == "randhie-summed" else 0.64)
