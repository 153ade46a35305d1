"""The example plans: each is valid, says what it is, and trains the packaged data."""

import pytest

from fedflow.crypto.csprng import Csprng
from fedflow.learning import randhie, randhie_mlp
from fedflow.learning.baselines import pooled_holdout
from fedflow.learning.evaluation import exact_score, exact_score_of_sites
from fedflow.learning.model_file import unflatten
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
    "personalised": {"evaluation__personalised": True},
    "local-layers": {"training__local_layers": ("head.*",)},
    "preprocessing": {"strategy__name": "moments", "method__bins": 32},
    "tabular": {"plan__workload": "randhie-table"},
    "kmeans": {"strategy__name": "kmeans", "method__clusters": 6, "evaluation__metric": "mse"},
    "linear": {"strategy__name": "linear", "evaluation__metric": "auc"},
    "prototypes": {"strategy__name": "prototypes", "method__neighbours": 3},
    "gbdt": {"strategy__name": "gbdt", "method__trees": 320},
    "forest": {"strategy__name": "forest", "method__trees": 120},
    "histogram": {"strategy__name": "histogram", "method__bins": 32},
    "cohorts": {"participation__fraction": 0.8, "stopping__target": 0.70},
    "robust-loss": {"training__robust_loss": 0.5, "training__class_weights": (1.4, 0.8)},
    "robust-groups": {"participation__groups": 3},
    "sparse": {"secure_aggregation__density": 0.5, "secure_aggregation__bits": 16},
}
#: The last round's score of plans without a gradient, and whether it is to be above.
METHODS = {
    "kmeans": (0.135, False),
    "linear": (0.70, True),
    "prototypes": (0.60, True),
    "gbdt": (0.73, True),
    "forest": (0.72, True),
}
#: In "cohorts" who is asked is the coordinator's, "robust-groups" needs nine sites, and tables have
#: data of their own.
ELSEWHERE = {"cohorts", "robust-groups", "preprocessing", "tabular", "histogram", *METHODS}
TRAINED = [name for name in DISTINCT if name not in ELSEWHERE]


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    parts = randhie.partition_sites(randhie.vendored_table())
    return loaded(tmp_path_factory.mktemp("sites"), parts)


def loaded(folder, parts):
    """The data of sites whose files are ``parts``, by name."""
    found = []
    for name, data in parts.items():
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
@pytest.mark.parametrize("name", METHODS)
def test_a_plan_without_a_gradient_learns(request, sites, name):
    plan, (score, above) = plan_named(request, name), METHODS[name]
    federation = Federation(randhie.workload, sites, plan, Csprng.from_seed(bytes(32)))
    for _ in range(plan.plan.rounds):
        federation.round()
    state = unflatten(federation.state, federation.spec)
    held_out = pooled_holdout(dict(enumerate(sites)))
    found = exact_score(randhie.workload, held_out, state, plan)
    assert (found > score) == above


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_plan_learns(request, sites, name):
    plan = plan_named(request, name)
    (workload,) = (
        w for w in (randhie.workload, randhie_mlp.workload) if w.name == plan.plan.workload
    )
    federation = Federation(workload, sites, plan, Csprng.from_seed(bytes(32)))
    for _ in range(4):
        federation.round()
    models = [model for model, _ in federation.site_models()]
    judged = [(data.holdout, model) for data, model in zip(sites, models, strict=True)]
    score = exact_score_of_sites(workload, judged, plan)
    assert score > (0.55 if name == "randhie-summed" else 0.64)


@pytest.mark.slow
def test_the_plan_of_groups_learns_at_nine_sites(request, tmp_path):
    """After four cycles, with masks: as ``fedflow demo --sites 9`` deals the persons."""
    plan = plan_named(request, "robust-groups")
    sites = loaded(tmp_path, randhie.deal_persons(randhie.vendored_table(), 9))
    csprng = Csprng.from_seed(bytes(32))
    federation = Federation(randhie.workload, sites, plan, csprng, secure=True)
    asked = [federation.round().survivors for _ in range(12)]
    assert all(len(group) == 3 for group in asked)
    assert sorted(site for group in asked[:3] for site in group) == list(range(9))
    judged = [(data.holdout, federation.model()) for data in sites]
    assert exact_score_of_sites(randhie.workload, judged, plan) > 0.66
