"""Groups, sparse updates and other losses in plans with layers and models of a site's own.

And what none of them goes with: methods that have no gradient, and no loss.
"""

import re

import numpy as np
import pytest
from learning_fixtures import plan_with
from test_learning_personal import HEADS, OWN, federation, made, site, state_of

from fedflow.learning.groups import deal
from fedflow.learning.model_file import flatten
from fedflow.learning.plan import DESCRIBING, METHODS
from fedflow.learning.plan_rules import SIZES
from fedflow.learning.server_state import parameters
from fedflow.learning.site_state import PERSONAL
from fedflow.learning.sparse import sent_places, spread

HALF = {"secure_aggregation__density": 0.5}
GROUPS = {"participation__groups": 3, "plan__rounds": 6, "evaluation__every": 3}
SIX = (site(1), site(-1)) * 3
NINE = (site(1), site(-1), site(1)) * 3


def heads(run):
    return [own is not None and "head.weight" in own for own in run._own]


@pytest.mark.parametrize("rounds_done", [0, 1, 2])
def test_a_sparse_update_is_of_what_travels_and_own_layers_train_whole(rounds_done):
    plan = plan_with(**HEADS, **HALF)
    vector, own = made({**HEADS, **HALF})
    assert vector.shape == (2,), "of the four numbers of the body; the head is never sent"
    assert set(own) == {"head.weight"}
    assert (own["head.weight"] != 0.3).all()
    run = federation({**HEADS, **HALF}, rounds=rounds_done)
    before = flatten(run.model())
    assert before.shape == (4,)
    run.round()
    moved = np.flatnonzero(flatten(run.model()) != before)
    assert moved.tolist() == sent_places(plan, 4, rounds_done).tolist()


def test_a_personal_model_of_a_sparse_update_is_the_shared_one_and_what_was_sent():
    fields = {**OWN, **HALF}
    plan = plan_with(**fields)
    vector, own = made(fields)
    state = state_of(plan)
    start, places = flatten(parameters(state)), sent_places(plan, 6, 0)
    assert vector.shape == (3,)
    wanted = start + spread(vector.astype(np.float64), places, 6).astype(np.float32)
    assert np.array_equal(own[PERSONAL], wanted)
    # The next round starts from the shared model: what was this site's own elsewhere is not kept.
    run = federation(fields, rounds=1)
    shared = flatten(run.model())
    run.round()
    moved = np.flatnonzero(run._own[0][PERSONAL] != shared)
    assert moved.tolist() == sent_places(plan, 6, 1).tolist()


def test_in_a_group_only_who_was_asked_changes_what_is_its_own():
    run = federation({**HEADS, **GROUPS}, sites=SIX)
    asked, body = set(), flatten(run.model())
    for group in deal(3, range(6), run.plan.digest(), 0):
        assert np.array_equal(flatten(run.model()), body)
        assert run.round().survivors == group
        asked |= set(group)
        assert [i for i, has in enumerate(heads(run)) if has] == sorted(asked)
    assert not np.array_equal(flatten(run.model()), body)


def test_groups_with_heads_of_their_own_learn_what_no_shared_head_could():
    """Half of the sites say the opposite of the others: a shared model is right half the time."""

    def right(fields):
        quiet = {**fields, **GROUPS, "privacy__noise_multiplier": 0.1}
        run = federation(quiet, rounds=6, sites=SIX)
        hits = []
        for (model, _), data in zip(run.site_models(), SIX, strict=True):
            scores = data.holdout.x[:, 0] @ model["body.weight"].T @ model["head.weight"].T
            hits.append((scores > 0) == (data.holdout.y > 0.5))
        return np.mean(hits)

    shared = {name: value for name, value in HEADS.items() if name != "training__local_layers"}
    assert right(HEADS) > 0.9
    assert right(shared) < 0.75


def test_personal_models_of_groups_are_scored_at_the_end_of_a_cycle():
    run = federation({**OWN, **GROUPS, "evaluation__noise_multiplier": 0.1}, rounds=3, sites=SIX)
    scores = run.evaluate()
    assert all(own is not None for own in run._own)
    assert scores.personalised > scores.score + 0.1


def test_a_robust_loss_trains_own_layers_too():
    quiet = {**HEADS, "privacy__noise_multiplier": 1e-6}
    plain, robust = (
        made({**quiet, "training__robust_loss": q}).own["head.weight"] for q in (None, 1.0)
    )
    assert np.abs(plain - robust).max() > 0.01


def test_all_together_make_the_same_bits_through_masks():
    fields = {**HEADS, **GROUPS, **HALF, "training__robust_loss": 0.5}
    fields |= {"training__class_weights": (1.0, 2.0), "evaluation__personalised": True}
    run = federation(fields, rounds=3, sites=NINE, secure=True)
    moved = np.flatnonzero(flatten(run.model()) != np.float32(0.3))
    assert moved.tolist() == sent_places(run.plan, 4, 0).tolist()
    assert heads(run) == [True] * 9


SIZE = {"trees": 6, "depth": 2, "bins": 4, "clusters": 3, "neighbours": 1}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (HALF, "leave out secure_aggregation.density"),
        (GROUPS, "does not go with participation.groups"),
        ({"training__robust_loss": 0.5}, "training.robust_loss needs a loss"),
        ({"training__class_weights": (1.0, 2.0)}, "training.class_weights needs a loss"),
    ],
)
def test_a_method_without_a_gradient_has_no_use_for_them(name, fields, words):
    method = {
        "strategy__name": name,
        "privacy__mechanism": "summed",
        "plan__rounds": 6,
        "training__local_steps": 1,
        "training__learning_rate": 1.0,
        **{f"method__{size}": SIZE[size] for size in SIZES[name][0]},
    }
    if name in DESCRIBING:
        method["evaluation"] = None
        fields = {key: value for key, value in fields.items() if key != "evaluation__every"}
    plan_with(**method)
    with pytest.raises(ValueError, match=re.escape(words)):
        plan_with(**{**method, **fields})
