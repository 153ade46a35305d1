"""What a site keeps crosses the training process's pipe, survives, and may be lost."""

import json

import numpy as np
import pytest
from plans import make_plan
from safetensors.numpy import load

from fedflow.errors import Refusal
from fedflow.learning import randhie_mlp
from fedflow.learning import workload as workload_module
from fedflow.learning.first_model import plan_model
from fedflow.learning.model_file import encode_model
from fedflow.learning.randhie import partition_sites, vendored_table
from fedflow.learning.server_state import initial_state
from fedflow.learning.workload import initial_model
from fedflow.site.policy import check_plan, load_policy, template
from fedflow.site.trainer import perform
from fedflow.site.training_client import TrainingFailed, _trained

PLAN = make_plan(
    plan__workload="randhie-mlp",
    training__local_layers=("head.*",),
    evaluation__personalised=True,
    evaluation__fairness_bins=4,
)
HEAD = initial_model(randhie_mlp.workload)["head.weight"]


@pytest.fixture
def ask(monkeypatch, tmp_path):
    monkeypatch.setattr(workload_module, "find_workload", lambda name: randhie_mlp.workload)
    rows = partition_sites(vendored_table())["1"].splitlines(keepends=True)[:300]
    (tmp_path / "visits.csv").write_bytes(b"".join(rows))
    model = encode_model(initial_state(plan_model(randhie_mlp.workload, PLAN), PLAN))

    def run(task, own=b"", plan=PLAN):
        request = {
            "task": task,
            "workload": "randhie-mlp",
            "data": str(tmp_path / "visits.csv"),
            "plan": plan.canonical().decode(),
            "sites": 4,
            "value_range": 8.0,
            "own": len(own),
        }
        return perform(json.loads(json.dumps(request)), model + own)

    return run


def test_what_is_kept_comes_back_and_what_is_damaged_is_as_if_lost(ask):
    first = ask("train")
    kept = load(first.own)
    assert set(kept) == {"head.weight", "head.bias", "~personal"}
    assert first.vector.size == kept["~personal"].size
    moved = np.linalg.norm(kept["head.weight"] - HEAD)
    assert moved > 0
    far = encode_model(kept | {"head.weight": kept["head.weight"] + np.float32(100.0)})
    assert load(ask("train", far).own)["head.weight"].min() > 50, "it goes on from its own head"
    for lost in (b"", far[:-1], b"\0" * len(far)):
        assert abs(load(ask("train", lost).own)["head.weight"]).max() < 50


def test_an_evaluation_keeps_nothing_and_has_the_plans_length(ask):
    found = ask("evaluate", ask("train").own)
    assert found.own == b""
    assert found.vector.dtype == np.int64
    assert found.vector.size == 2 * 2 * PLAN.evaluation.bins + 4


def test_a_pattern_that_matches_nothing_is_refused_before_the_site_promises_anything(ask):
    plan = make_plan(plan__workload="randhie-mlp", training__local_layers=("tail.*",))
    with pytest.raises(Refusal, match="matches no parameter"):
        ask("check", plan=plan)


@pytest.mark.parametrize("own", [-1, 13, 5, "4", 2**70])
def test_an_answer_whose_parts_do_not_add_up_is_refused(own):
    payload = np.zeros(12, np.uint8)
    with pytest.raises(TrainingFailed):
        _trained({"ok": True, "dtype": "float32", "own": own}, payload)
    vector, kept = _trained({"ok": True, "dtype": "float32", "own": 4}, payload)
    assert (vector.size, len(kept)) == (2, 4)


def test_a_policys_least_noise_holds_for_all_that_is_counted(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(
        template(
            authority="0" * 64,
            coordinators=["0" * 64],
            workload="randhie-mlp",
            dataset="visits",
            path="visits.csv",
            epsilon=3.0,
            delta=1e-5,
            plan=PLAN,
        )
    )
    path.chmod(0o600)
    check_plan(load_policy(path), PLAN)
    quieter = PLAN.evaluation.model_copy(update={"noise_multiplier": 5.9})
    with pytest.raises(Refusal, match=r"evaluation\.noise_multiplier is 5\.9"):
        check_plan(load_policy(path), PLAN.model_copy(update={"evaluation": quieter}))
