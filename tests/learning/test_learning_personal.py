"""Models of a site's own: layers that stay there, and the global model after its own steps.

In :class:`Headed` a person's score is ``head (body x)``. At site A a high first feature means label
1, at site B label 0: one head for both can do no better than a coin, a head for each is right.
"""

import functools

import numpy as np
import pytest
import torch
from learning_fixtures import plan_with
from pydantic import ValidationError

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Refusal
from fedflow.federation.scoring import scoring_plan
from fedflow.learning import randhie_mlp
from fedflow.learning.contribution import contribution
from fedflow.learning.dpsgd import train_private
from fedflow.learning.evaluation import exact_score_of_sites, noisy_counts
from fedflow.learning.first_model import plan_model, plan_spec
from fedflow.learning.local_layers import split_layers
from fedflow.learning.model_file import ModelSpec, encode_model, flatten, unflatten
from fedflow.learning.scoring import GRID, noise_share_stddev, scores_of, sensitivity
from fedflow.learning.server_state import CONTROL, initial_state, state_spec
from fedflow.learning.site_state import (
    PERSONAL,
    personal_model,
    read_kept,
    site_model,
    site_spec,
)
from fedflow.learning.workload import PersonData, Persons, initial_model, model_spec
from fedflow.privacy.plan_cost import evaluation_event, plan_cost
from fedflow.simulation.federation import Federation
from fedflow.wire.messages import Kind

PERSONS = 40
BASE = {
    "cohort__minimum": 2,
    "cohort__colluders": 0,
    "privacy__clipping_norm": 1.0,
    "privacy__noise_multiplier": 0.5,
    "privacy__sample_rate": 1.0,
    "training__learning_rate": 0.5,
    "training__local_steps": 10,
}
HEADS = {**BASE, "training__local_layers": ("head.*",)}
OWN = {**BASE, "evaluation__personalised": True}


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, size in (("body", (2, 2)), ("head", (1, 2))):
            layer = torch.nn.utils.skip_init(torch.nn.Linear, size[1], size[0], bias=False)
            torch.nn.init.constant_(layer.weight, 0.3)
            setattr(self, name, layer)

    def forward(self, x):
        return self.head(self.body(x)).squeeze(-1)


class Headed:
    name, unit_column, reference_persons, score_range = "headed", "who", PERSONS, (0.0, 1.0)

    def build_model(self):
        return Two()

    def load(self, path):
        raise NotImplementedError

    def loss(self, scores, y):
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")


def persons(sign, seed):
    drawn = Csprng.from_seed(bytes([seed] * 32)).uniform(2 * PERSONS).reshape(PERSONS, 1, 2)
    x = (2.0 * drawn - 1.0).astype(np.float32)
    y = (sign * x[:, :, 0] > 0).astype(np.float32)
    ids = tuple(map(str, range(PERSONS)))
    return Persons(x, y, np.ones((PERSONS, 1), bool), ids)


@functools.cache
def site(sign):
    return PersonData(persons(sign, 1), persons(sign, 2))


SITES = (site(1), site(-1))


def federation(fields, rounds=0, sites=SITES, **more):
    run = Federation(Headed(), sites, plan_with(**fields), Csprng.from_seed(bytes(32)), **more)
    for _ in range(rounds):
        run.round()
    return run


def state_of(plan):
    return initial_state(plan_model(Headed(), plan), plan)


def made(fields, kind=Kind.TRAIN, own=None, seed=0, data=SITES[0]):
    plan = plan_with(**fields)
    return contribution(
        Headed(),
        data,
        state_of(plan),
        plan,
        kind,
        sites=2,
        value_range=8.0,
        csprng=Csprng.from_seed(bytes([seed] * 32)),
        own=own,
    )


# ---- layers that stay


def test_local_layers_are_in_no_model_file_and_in_no_release():
    plan = plan_with(**HEADS)
    assert list(plan_model(Headed(), plan)) == ["body.weight"]
    run = federation(HEADS)
    opened = run.attempt()
    assert run.dimension == 4
    assert {words.size for words in opened.words.values()} == {4 + 1}  # the body, and the weight
    run.accept(opened)
    assert list(run.model()) == ["body.weight"]
    everything = federation(BASE)
    assert (everything.dimension, list(everything.model())) == (6, ["body.weight", "head.weight"])


def test_what_is_released_does_not_depend_on_where_the_head_ends():
    """The same steps give the same change of the body, and the head that stays is their rest."""
    whole, parts = made(BASE), made(HEADS)
    np.testing.assert_array_equal(whole.vector[:4], parts.vector)
    start = initial_model(Headed())["head.weight"]
    np.testing.assert_array_equal(start.ravel() + whole.vector[4:], parts.own["head.weight"][0])
    assert whole.own is None


def test_noise_is_on_the_whole_clipped_gradient():
    """One step on nobody: the head moves by noise of the plan's deviation, as the body does."""
    nobody = PersonData(
        Persons(
            np.zeros((1, 1, 2), np.float32),
            np.zeros((1, 1), np.float32),
            np.ones((1, 1), bool),
            "a",
        ),
        SITES[0].holdout,
    )
    fields = {**HEADS, "training__local_steps": 1}
    start = initial_model(Headed())["head.weight"]
    draws = [made(fields, seed=number, data=nobody) for number in range(200)]
    heads = np.concatenate([(one.own["head.weight"] - start).ravel() for one in draws])
    bodies = np.concatenate([one.vector for one in draws])
    planned = 0.5 * 0.5 * 1.0 / PERSONS
    for found in (heads, bodies):  # 400 draws: 15 % is 4.2 standard errors
        assert found.std() == pytest.approx(planned, rel=0.15)
    beside = bodies.reshape(-1, 4)[:, :2].ravel()
    assert abs(np.corrcoef(heads, beside)[0, 1]) < 0.25


def test_heads_of_their_own_serve_sites_that_one_model_cannot():
    scores = {}
    for name, fields in (("one", BASE), ("each", HEADS)):
        run = federation({**fields, "evaluation__noise_multiplier": 0.1}, 20)
        state = unflatten(run.state, run.spec)
        own = [site_model(Headed(), state, kept, run.plan) for kept in run._own]
        judged = [(data.holdout, model) for data, model in zip(SITES, own, strict=True)]
        scores[name] = exact_score_of_sites(Headed(), judged, run.plan)
        assert run.evaluate().score == pytest.approx(scores[name], abs=0.15)
    assert scores["one"] < 0.65
    assert scores["each"] > 0.9


def test_a_site_that_missed_a_round_or_lost_its_file_goes_on():
    run = federation(HEADS, sites=(*SITES, site(1)))
    run.round(drop=[1])
    assert run._own[1] is None
    initial = initial_model(Headed())["head.weight"]
    state = unflatten(run.state, run.spec)
    found = site_model(Headed(), state, None, run.plan)
    np.testing.assert_array_equal(found["head.weight"], initial)
    run.round()
    assert abs(run._own[1]["head.weight"] - initial).max() > 0
    run._own[1] = None
    run.round()
    assert run._own[1] is not None


def test_an_attempt_that_makes_no_model_changes_nothing_at_sites():
    run = federation(HEADS, 1)
    before = [kept["head.weight"].copy() for kept in run._own]
    run.attempt()
    for kept, was in zip(run._own, before, strict=True):
        np.testing.assert_array_equal(kept["head.weight"], was)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("tail.*",), r"'tail\.\*' matches no parameter of the workload \(there are: body.weight"),
        (("head.*", "x"), "'x' matches no parameter"),
        (("*",), "match every parameter: nothing is left to sum"),
        (("body.*", "head.*"), "match every parameter"),
    ],
)
def test_patterns_that_match_nothing_or_everything_are_refused(patterns, words):
    plan = plan_with(**{**BASE, "training__local_layers": patterns})
    with pytest.raises(Refusal, match=words) as caught:
        plan_model(Headed(), plan)
    assert caught.value.code == "local-layers"


@pytest.mark.parametrize(
    "change", [{"training__local_layers": ("head.*",)}, {"evaluation__personalised": True}]
)
def test_what_a_site_keeps_has_all_of_its_noise(change):
    summed = {
        "strategy__name": "fedsgd",
        "privacy__mechanism": "summed",
        "training__local_steps": 1,
        "training__learning_rate": 1.0,
    }
    whole = {"privacy__mechanism": "site", "privacy__unit": "site"}
    for fields in (summed, whole):
        with pytest.raises(ValidationError, match=r'needs privacy\.mechanism "local"'):
            plan_with(**fields, **change)
    with pytest.raises(ValidationError, match=r"plan\.rounds is 0"):
        plan_with(plan__rounds=0, **change)


def test_scaffold_and_fedprox_steer_what_travels_only():
    """The own head is pulled nowhere: with a pull that holds the body still it moves as freely."""
    held = {**HEADS, "training__proximal": 1.9, "training__learning_rate": 0.5}
    free, pulled = made(HEADS), made(held)
    start = initial_model(Headed())["head.weight"]
    moved = [abs(one.own["head.weight"] - start).max() for one in (free, pulled)]
    assert abs(pulled.vector).max() < 0.5 * abs(free.vector).max()
    assert moved[1] > 0.5 * moved[0]
    run = federation({**HEADS, "strategy__name": "scaffold"}, 2)
    assert {name: tensor.size for name, tensor in run._own[0].items()} == {
        "head.weight": 2,
        CONTROL: 4,
    }
    change = train_private(
        Headed(),
        SITES[0],
        initial_model(Headed()),
        plan_with(**{**HEADS, "training__local_steps": 1}),
        Csprng.from_seed(bytes(32)),
        correction=np.full(4, 100.0),
    )
    assert (change[:4] < -40).all()
    assert (abs(change[4:]) < 1).all()


def test_local_layers_of_a_workload_with_a_head():
    plan = plan_with(training__local_layers=("head.*",))
    shared, layers = split_layers(initial_model(randhie_mlp.workload), plan)
    assert set(shared) == {"body.weight", "body.bias"}
    assert set(layers) == {"head.weight", "head.bias"}
    assert plan_spec(randhie_mlp.workload, plan) == ModelSpec.of(shared)
    one, two = (flatten(initial_model(randhie_mlp.workload)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


# ---- the personalised model


def test_the_personalised_model_is_the_global_one_after_the_sites_own_steps():
    run = federation(OWN, 2)
    before = run.state.copy()
    opened = run.attempt()
    trained = [run._next_own[at][PERSONAL] - before for at in range(2)]
    run.accept(opened)
    # The mean of what sites keep, less what they began from, is the global step (but rounding).
    np.testing.assert_allclose(run.state - before, np.mean(trained, axis=0), atol=1e-4)
    state = unflatten(run.state, run.spec)
    models = [personal_model(state, kept, run.plan) for kept in run._own]
    np.testing.assert_allclose(flatten(models[0]), before + trained[0], atol=1e-6)
    assert abs(flatten(models[0]) - flatten(models[1])).max() > 0.05


def test_the_sum_tells_the_personalised_score_beside_the_global_one():
    quiet = {**OWN, "evaluation__noise_multiplier": 0.1}
    run = federation(quiet, 5)
    found = run.evaluate()
    state = unflatten(run.state, run.spec)
    own = [personal_model(state, kept, run.plan) for kept in run._own]
    for score, models in ((found.score, [state, state]), (found.personalised, own)):
        judged = [(data.holdout, model) for data, model in zip(SITES, models, strict=True)]
        assert score == pytest.approx(exact_score_of_sites(Headed(), judged, run.plan), abs=0.1)
    assert found.personalised > found.score + 0.2
    assert federation(BASE, 1).evaluate().personalised is None


def test_a_site_without_a_model_of_its_own_counts_the_global_one_twice():
    plan = plan_with(**OWN)
    counts = noisy_counts(Headed(), SITES[0], state_of(plan), plan, Csprng.from_seed(bytes(32)))
    plain = plan_with(**BASE)
    noise = noisy_counts(
        Headed(),
        PersonData(SITES[0].train, persons_nobody()),
        state_of(plan),
        plan,
        Csprng.from_seed(bytes(32)),
    )
    halves = np.split(counts - noise, 2)  # the same generator: the same noise
    np.testing.assert_array_equal(*halves)
    assert halves[0].sum() == PERSONS * GRID
    assert counts.size == 2 * plain.vector_length(Kind.EVALUATE, 0)


def persons_nobody():
    whole = SITES[0].holdout
    return Persons(whole.x[:0], whole.y[:0], whole.mask[:0], ())


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, 1),
        ({"evaluation__personalised": True}, 2),
        ({"evaluation__fairness_bins": 4}, 2),
        ({"evaluation__personalised": True, "evaluation__fairness_bins": 4}, 3),
    ],
)
def test_noise_is_that_of_the_whole_vectors_sensitivity(fields, parts):
    """Every coordinate's deviation, over 300 draws: a chi-square test at 5 standard errors."""
    plan = plan_with(**{**BASE, **fields, "evaluation__noise_multiplier": 3.0})
    assert sensitivity(plan) == pytest.approx(GRID * parts**0.5)
    state, csprng = state_of(plan), Csprng.from_seed(bytes([7] * 32))
    empty = PersonData(SITES[0].train, persons_nobody())
    draws = np.stack([noisy_counts(Headed(), empty, state, plan, csprng) for _ in range(300)])
    planned = 3.0 * GRID * (parts / 2) ** 0.5  # two honest sites share it
    assert noise_share_stddev(plan) == pytest.approx(planned)
    error = (2 / draws.size) ** 0.5
    assert (draws / planned).var() == pytest.approx(1.0, abs=5 * error)
    each = (draws / planned).var(axis=0)
    assert abs(each - 1.0).max() < 5 * (2 / len(draws)) ** 0.5


def test_a_person_moves_the_whole_vector_by_no_more_than_its_sensitivity():
    fields = {**OWN, "evaluation__fairness_bins": 50, "evaluation__fairness_between": (0.0, 1.0)}
    run = federation(fields, 2)
    plan, state = run.plan, unflatten(run.state, run.spec)
    moved_bins = 0
    for data, own in zip(SITES, run._own, strict=True):
        whole = quiet_counts(data.holdout, state, plan, own)
        for left in range(PERSONS):
            keep = np.arange(PERSONS) != left
            held = data.holdout
            ids = tuple(i for i, k in zip(held.ids, keep, strict=True) if k)
            fewer = Persons(held.x[keep], held.y[keep], held.mask[keep], ids)
            change = whole - quiet_counts(fewer, state, plan, own)
            assert np.linalg.norm(change) <= sensitivity(plan)
            moved_bins += bool(change[-50:].any())
    assert moved_bins, "nobody moved a site to another bin: the test shows too little"


def quiet_counts(held, state, plan, own):
    """The counts without noise: the same noise is drawn without persons and taken off."""
    seeds = (Csprng.from_seed(bytes(32)) for _ in range(2))
    data = (PersonData(SITES[0].train, who) for who in (held, persons_nobody()))
    one, other = (
        noisy_counts(Headed(), each, state, plan, csprng, own=own)
        for each, csprng in zip(data, seeds, strict=True)
    )
    return one - other


def test_an_evaluation_costs_what_it_cost():
    plain = plan_with(**BASE)
    more = plan_with(**{**OWN, "evaluation__fairness_bins": 10})
    assert evaluation_event(plain) == evaluation_event(more)
    assert plan_cost(plain) == plan_cost(more)


def test_persons_trained_on_reach_an_evaluation_through_noised_values_only():
    """Other training data, the same kept file and the same noise: the same counts, bit by bit."""
    fields = {**OWN, "training__local_layers": ("head.*",)}
    own = made(fields).own
    counts = [
        made(fields, Kind.EVALUATE, own=own, data=PersonData(train, SITES[0].holdout)).vector
        for train in (SITES[0].train, SITES[1].train)
    ]
    np.testing.assert_array_equal(*counts)


def test_a_kept_file_that_is_of_no_use_is_none():
    plan = plan_with(**{**OWN, "training__local_layers": ("head.*",)})
    own = made({**OWN, "training__local_layers": ("head.*",)}).own
    file = encode_model(own)
    assert ModelSpec.of(own) == site_spec(model_spec(Headed()), plan)
    assert {name: array.size for name, array in own.items()} == {"head.weight": 2, PERSONAL: 4}
    again = read_kept(file, Headed(), plan)
    np.testing.assert_array_equal(flatten(again), flatten(own))
    for damaged in (b"", file[:-1], file[:40] + b"\xff" + file[41:], b"x" * len(file)):
        assert read_kept(damaged, Headed(), plan) is None
    assert read_kept(file, Headed(), plan_with(**BASE)) is None
    other = encode_model({"~control": np.zeros(4, np.float32)})
    assert read_kept(other, Headed(), plan) is None
    state = state_of(plan)
    assert state_spec(plan_spec(Headed(), plan), plan) == ModelSpec.of(state)


def test_a_job_that_only_scores_has_no_models_of_sites():
    scored = scoring_plan(plan_with(**OWN))
    assert (scored.plan.rounds, scored.evaluation.personalised) == (0, False)
    assert type(scored).from_canonical(scored.canonical()) == scored
    with pytest.raises(Refusal, match="only be scored in the job that trains it"):
        scoring_plan(plan_with(**HEADS))


# ---- how alike sites are served


def test_sites_are_counted_by_their_own_score():
    fields = {
        **HEADS,
        "evaluation__fairness_bins": 5,
        "evaluation__fairness_between": (0.0, 1.0),
        "evaluation__noise_multiplier": 0.05,
    }
    run = federation({**fields, "training__local_layers": ()}, 2, sites=(*SITES, site(1), site(1)))
    found = run.evaluate()
    state = unflatten(run.state, run.spec)
    scores = [
        exact_score_of_sites(Headed(), [(data.holdout, state)], run.plan) for data in run.sites
    ]
    bins = np.bincount([min(int(score * 5), 4) for score in scores], minlength=5)
    assert max(bins) == 3, "three sites are alike and one is not"
    np.testing.assert_allclose(found.fairness, bins, atol=4 * found.fairness_stderr)
    assert found.fairness_stderr == pytest.approx(0.05 * 2**0.5 * 2**0.5 * 2**0.5, rel=0.01)


def test_a_site_with_nobody_held_out_is_in_no_bin():
    plan = plan_with(**BASE, evaluation__fairness_bins=3)
    assert not quiet_counts(persons_nobody(), state_of(plan), plan, None).any()


def test_a_whole_site_has_its_own_weight():
    plan = plan_with(
        privacy__mechanism="site",
        privacy__unit="site",
        cohort__minimum=2,
        cohort__colluders=0,
        evaluation__fairness_bins=4,
    )
    counts = quiet_counts(SITES[0].holdout, state_of(plan), plan, None)
    assert counts[-4:].sum() == 64 * GRID  # leaving its bin is all a site can do to it
    assert np.linalg.norm(counts) <= sensitivity(plan) == pytest.approx(64 * GRID * 2**0.5)
    total = np.zeros(plan.vector_length(Kind.EVALUATE, 0), np.int64)
    total[-4:] = 64 * GRID * np.array([3, 2, 1, 0])
    assert scores_of(total, plan, 6).fairness == (3, 2, 1, 0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"evaluation__fairness_between": (0.5, 0.9)}, "is for fairness_bins"),
        (
            {"evaluation__fairness_bins": 3, "evaluation__fairness_between": (0.9, 0.5)},
            "the smaller one first",
        ),
    ],
)
def test_bins_lie_between_two_scores(fields, words):
    with pytest.raises(ValidationError, match=words):
        plan_with(**fields)
