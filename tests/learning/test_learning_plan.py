"""Plans: what a person gets told, and that bytes, plan and digest are one to one."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learning_fixtures import plan_with
from plans import SUMMED
from pydantic import BaseModel, ConfigDict

from fedflow.crypto.suites import SUITE_HYBRID, SUITE_X25519
from fedflow.errors import InputError, Refusal, Violation
from fedflow.learning.plan import Plan, load_plan
from fedflow.learning.update_coding import UpdateCoding
from fedflow.settings_file import load_toml
from fedflow.wire.messages import Kind

PLAN = Path(__file__).parents[2] / "flows" / "plans" / "randhie.toml"


def line_of(text, start):
    return next(i for i, line in enumerate(text.splitlines(), 1) if line.startswith(start))


def edited(tmp_path, start, new):
    text = PLAN.read_text()
    old = next(line for line in text.splitlines() if line.startswith(start))
    path = tmp_path / "plan.toml"
    path.write_text(text.replace(old, new, 1))
    return path, line_of(text, start)


def test_the_packaged_plan_loads_and_survives_its_canonical_form():
    plan = load_plan(PLAN)
    assert Plan.from_canonical(plan.canonical()) == plan
    assert len(plan.digest()) == 32


@pytest.mark.parametrize(
    ("start", "new", "field", "words"),
    [
        ("noise_multiplier", "noise_multiplier = -1.0", "privacy.noise_multiplier", "over 0"),
        ("noise_multiplier", 'noise_multiplier = "2"', "privacy.noise_multiplier", "a number"),
        ("noise_multiplier", "noise_multiplier = nan", "privacy.noise_multiplier", "a number"),
        ("noise_multiplier", "noise_multiplier = true", "privacy.noise_multiplier", "a number"),
        ("rounds", "rounds = 1.5", "plan.rounds", "a whole number"),
        ("rounds", "rounds = -1", "plan.rounds", "at least 0"),
        ("unit", 'unit = "row"', "privacy.unit", '"person"'),
        ("sample_rate", "sample_rate = 1.5", "privacy.sample_rate", "at most 1"),
        ("bits", "bits = 64", "secure_aggregation.bits", "at least 8 and at most 32"),
        ("bits", "bits = 7", "secure_aggregation.bits", "at least 8 and at most 32"),
        ("value_range", "value_range = 0", "secure_aggregation.value_range", '"auto" or a number'),
        ("value_range", 'value_range = "x"', "secure_aggregation.value_range", '"auto" or'),
        ("value_range", "value_range = 1e7", "secure_aggregation.value_range", "at most 1e+06"),
        ("value_range", "value_range = nan", "secure_aggregation.value_range", "a number"),
        ("value_range", "value_range = true", "secure_aggregation.value_range", "a number"),
        ("value_range", "value_range = [1]", "secure_aggregation.value_range", "a number"),
        ("suite", 'suite = "rsa"', "secure_aggregation.suite", '"x25519-mlkem768"'),
        ('name = "fedavg"', 'name = "x"', "strategy.name", '"fedavg"'),
        ("weighting", 'weighting = "by size"', "strategy.weighting", '"uniform" or "declared"'),
        ("minimum", "minimum = 16385", "cohort.minimum", "at most 16384"),
        ("momentum", "momentum = 1.0", "training.momentum", "under 1"),
        ("local_steps", "local_stepz = 3", "training.local_stepz", "did you mean 'local_steps'"),
        ("name", 'name = "Bad Name"', "plan.name", "lower-case"),
    ],
)
def test_bad_field_is_refused_with_line_field_and_what_is_allowed(
    tmp_path, start, new, field, words
):
    path, line = edited(tmp_path, start, new)
    with pytest.raises(InputError) as caught:
        load_plan(path)
    assert f"{path}:{line}: {field}" in str(caught.value)
    assert words in str(caught.value)


def test_every_problem_is_reported_at_once(tmp_path):
    text = PLAN.read_text().replace("colluders", "coluders")
    path = tmp_path / "plan.toml"
    path.write_text(text.replace("delta =", "delta = 2.0 #"))
    with pytest.raises(InputError) as caught:
        load_plan(path)
    message = str(caught.value)
    assert "3 problems" in message
    for words in ("cohort.colluders: this field is missing", "did you mean 'colluders'", "0.001"):
        assert words in message


def test_broken_toml_names_its_line(tmp_path):
    path, line = edited(tmp_path, "rounds", "rounds = = 3")
    with pytest.raises(InputError, match=f":{line}: this is not valid TOML"):
        load_plan(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x = '" + b"a" * (2 << 20) + b"'"])
def test_unreadable_files_are_refused(tmp_path, content):
    path = tmp_path / "plan.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.toml"):
        load_plan(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_plan(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"), [("8", 8.0), ("0.25", 0.25), ("1e6", 1e6), ('"auto"', "auto")]
)
def test_the_range_is_a_number_or_automatic(tmp_path, text, value):
    path, _ = edited(tmp_path, "value_range", f"value_range = {text}")
    plan = load_plan(path)
    assert plan.secure_aggregation.value_range == value
    assert isinstance(plan.secure_aggregation.value_range, type(value))
    assert Plan.from_canonical(plan.canonical()) == plan


def test_what_a_plan_file_leaves_out_is_in_the_canonical_plan(tmp_path):
    path, _ = edited(tmp_path, "weighting", "")
    assert load_plan(path) == load_plan(PLAN)
    data = plan_with().canonical()
    for default in (b'"weighting":"uniform"', b'"suite":"x25519"'):
        assert default in data
        with pytest.raises(Violation):
            Plan.from_canonical(data.replace(b"," + default, b"").replace(default + b",", b""))


def test_bits_must_hold_the_smallest_sum():
    assert plan_with(cohort__minimum=127, secure_aggregation__bits=8).bits(Kind.TRAIN) == 8
    with pytest.raises(ValueError, match="at least 9 bits"):
        plan_with(cohort__minimum=128, secure_aggregation__bits=8)
    plan = plan_with(cohort__minimum=16_384, secure_aggregation__bits=16)
    assert plan.coding(16_384, 1.0).values.limit == 1
    small = plan_with(secure_aggregation__bits=8)
    assert small.coding(127, 1.0).values.limit == 1
    with pytest.raises(Refusal, match="at least 9 are needed") as caught:
        small.coding(128, 1.0)
    assert caught.value.code == "too-few-bits"


def test_a_round_has_a_length_a_width_and_a_suite():
    plan = plan_with(secure_aggregation__bits=12, evaluation__bins=7)
    assert plan.vector_length(Kind.TRAIN, 100) == 101
    assert plan.vector_length(Kind.EVALUATE, 100) == 14
    assert (plan.bits(Kind.TRAIN), plan.bits(Kind.EVALUATE)) == (12, 32)
    assert plan.coding(5, 2.0) == UpdateCoding(5, 12, 2.0)
    assert plan.suite == SUITE_X25519
    assert plan_with(secure_aggregation__suite="x25519-mlkem768").suite == SUITE_HYBRID


def test_a_sum_of_too_few_honest_sites_is_refused():
    with pytest.raises(ValueError, match="honest"):
        plan_with(cohort__minimum=3, cohort__colluders=2)


def test_tables_with_free_names_and_arrays_are_found_by_line(tmp_path):
    class Item(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        path: str
        epsilon: float

    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        names: tuple[str, ...]
        datasets: dict[str, Item]

    path = tmp_path / "policy.toml"
    good = 'names = ["a", "b"]\n\n[datasets.visits]\npath = "x"\nepsilon = 3\n'
    path.write_text(good)
    assert load_toml(path, Settings).names == ("a", "b")
    path.write_text(good.replace("epsilon = 3", "epsilon = 'three'"))
    with pytest.raises(InputError, match=r"policy.toml:5: datasets.visits.epsilon: .*a number"):
        load_toml(path, Settings)
    path.write_text(good.replace("epsilon", "epsilom"))
    with pytest.raises(InputError, match=r"policy.toml:5: .*did you mean 'epsilon'"):
        load_toml(path, Settings)


@given(
    st.integers(1, 100),
    st.floats(1e-3, 1e3),
    st.floats(1e-6, 1.0),
    st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,20}\Z"),
)
def test_canonical_round_trip(rounds, noise, rate, name):
    plan = plan_with(
        plan__rounds=rounds, privacy__noise_multiplier=noise, privacy__sample_rate=rate
    )
    plan = plan.model_copy(update={"plan": plan.plan.model_copy(update={"name": name})})
    again = Plan.from_canonical(plan.canonical())
    assert again == plan
    assert again.digest() == plan.digest()


SCORE = ("metric", "bins", "error_bound")
PRIVACY = ("unit", "mechanism", "clipping_quantile")


def sizes_of_methods():
    """Plans of methods; each field of [method] is in one of them beside a plan without it."""
    for name, needed, more in (
        ("linear", {}, {"ridge": 2.0}),
        ("gbdt", {"trees": 6, "depth": 3}, {"bins": 8, "ridge": 2.0}),
        ("gbdt", {"trees": 9, "depth": 3}, {}),
        ("gbdt", {"trees": 6, "depth": 4}, {}),
        ("prototypes", {"clusters": 4, "neighbours": 2}, {}),
        ("prototypes", {"clusters": 5, "neighbours": 2}, {}),
        ("prototypes", {"clusters": 4, "neighbours": 3}, {}),
    ):
        plan = SUMMED | {"strategy__name": name}
        plan |= {f"method__{size}": value for size, value in needed.items()}
        yield plan
        for size, value in more.items():
            yield plan | {f"method__{size}": value}


def test_every_field_changes_the_digest():
    base = plan_with()
    seen = {base.digest()}
    changes = 0
    for section, fields in base.model_dump().items():
        for field, value in fields.items():
            if field in (
                "unit",
                "mechanism",
                "clipping_quantile",
                "local_epochs",
                "buffer",
                "fairness_between",
                *SCORE,
            ):
                continue  # they go together with others: below
            if (section, field) == ("strategy", "name") or section == "method":
                continue
            if field == "groups":
                continue
            new = value + 1 if isinstance(value, int) else value
            new = value / 2 if isinstance(value, float) else new
            new = value + "x" if isinstance(value, str) else new
            new = {
                "momentum": 0.5,
                "bits": 31,
                "weighting": "declared",
                "suite": "x25519-mlkem768",
                "optimizer": "adam",
                "server_optimizer": "adam",
                "server_momentum": 0.5,
                "proximal": 0.5,
                "class_weights": (0.5, 1.5),
                "robust_loss": 0.5,
                "selection": "budget",
                "strata": ("north-*",),
                "columns": ({"name": "age", "fill": 0.0},),
                "max_seconds": 60.0,
                "target": 0.5,
                "patience": 3,
                "exhausted_sites": 1,
                "local_layers": ("head.*",),
                "personalised": True,
                "fairness_bins": 5,
            }.get(field, new)
            seen.add(plan_with(**{f"{section}__{field}": new}).digest())
            changes += 1
    together = (
        {"training__local_steps": None, "training__local_epochs": 1},
        {"privacy__unit": "record"},
        {"strategy__name": "scaffold"},
        {"strategy__name": "fedbuff", "strategy__buffer": 5},
        {"evaluation__bins": 5},
        {"evaluation__fairness_bins": 4, "evaluation__fairness_between": (0.6, 0.9)},
        {"evaluation__metric": "accuracy", "evaluation__bins": None},
        {
            "evaluation__metric": "mse",
            "evaluation__bins": None,
            "evaluation__error_bound": 2.0,
        },
        {"privacy__mechanism": "site", "privacy__unit": "site"},
        {"privacy__mechanism": "site", "privacy__unit": "site", "privacy__clipping_quantile": 0.5},
        SUMMED,
        *sizes_of_methods(),
        {"participation__groups": 3, "evaluation__every": 3},
    )
    seen |= {plan_with(**fields).digest() for fields in together}
    assert len(seen) == changes + 1 + len(together)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"training__local_steps": None}, "either local_steps or local_epochs"),
        ({"evaluation__bins": None}, 'bins is missing for metric "auc"'),
        ({"evaluation__metric": "accuracy"}, 'bins is only for metric "auc"'),
        ({"evaluation__error_bound": 1.0}, 'error_bound is only for metric "mse"'),
        ({"training__local_steps": 1, "training__proximal": 0.1}, "does nothing in a round of one"),
        ({"strategy__name": "scaffold", "training__momentum": 0.9}, 'sgd" without momentum'),
        ({"strategy__name": "scaffold", "training__optimizer": "adam"}, 'sgd" without momentum'),
        ({"strategy__name": "scaffold", "strategy__weighting": "declared"}, 'is "uniform"'),
        (
            {"strategy__server_optimizer": "yogi", "strategy__server_momentum": 0.5},
            "yogi has its own",
        ),
        ({"training__local_epochs": 2}, "either local_steps or local_epochs"),
        (
            {
                "training__local_steps": None,
                "training__local_epochs": 1000,
                "privacy__sample_rate": 0.01,
            },
            "makes 100000 steps a round",
        ),
        ({"privacy__unit": "site"}, 'mechanism "local" cannot protect unit "site"'),
        ({"privacy__mechanism": "site"}, 'mechanism "site" cannot protect unit "person"'),
        ({"privacy__mechanism": "summed"}, 'name "fedavg" does not go with'),
        ({"strategy__name": "fedsgd"}, 'does not go with privacy.mechanism "local"'),
        (SUMMED | {"training__local_steps": 2}, "a round is one step"),
        (SUMMED | {"training__local_steps": None, "training__local_epochs": 1}, "one step"),
        (SUMMED | {"training__learning_rate": 0.5}, "only the server steps"),
        (SUMMED | {"training__momentum": 0.5}, "only the server steps"),
        (SUMMED | {"training__optimizer": "adam"}, "only the server steps"),
        (SUMMED | {"strategy__weighting": "declared"}, 'strategy.weighting is "uniform"'),
        ({"privacy__clipping_quantile": 0.5}, 'is for privacy.mechanism "site"'),
        ({"training__class_weights": (2.0,)}, "two at least"),
        (
            {
                "training__class_weights": (1.0, 2.0),
                "evaluation__metric": "mse",
                "evaluation__bins": None,
                "evaluation__error_bound": 1.0,
            },
            'metric "mse" has none',
        ),
        (
            SUMMED | {"strategy__name": "linear", "training__robust_loss": 0.5},
            'strategy.name "linear" has none',
        ),
        ({"training__optimizer": "adam", "training__momentum": 0.5}, "belongs to sgd"),
        (
            {"strategy__server_optimizer": "adam", "strategy__server_momentum": 0.5},
            "strategy.server_momentum belongs to sgd",
        ),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(fields, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        plan_with(**fields)


def test_an_epoch_is_as_many_steps_as_the_sample_rate_says():
    fields = {"training__local_steps": None, "training__local_epochs": 3}
    assert plan_with(**fields, privacy__sample_rate=0.07).local_steps == 43
    assert plan_with(training__local_steps=5).local_steps == 5


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({}, 1),
        (SUMMED, 1),
        ({"privacy__mechanism": "site", "privacy__unit": "site"}, 1),
        (
            {
                "privacy__mechanism": "site",
                "privacy__unit": "site",
                "privacy__clipping_quantile": 0.5,
            },
            2,
        ),
    ],
)
def test_the_vector_of_a_round_has_its_weight_and_perhaps_a_norm_bit(fields, extra):
    plan = plan_with(**fields)
    assert plan.vector_length(Kind.TRAIN, 100) == 100 + extra
    assert plan.vector_length(Kind.EVALUATE, 100) == 2 * plan.evaluation.bins


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b + b" ",
        lambda b: b[:-1],
        lambda b: b.replace(b'"rounds":3', b'"rounds":3.0'),
        lambda b: b.replace(b'"rounds":3', b'"rounds":3,"rounds":3'),
        lambda b: b.replace(b'"rounds":3', b'"rounds":-3'),
        lambda b: b.replace(b'"delta":1e-05', b'"delta":0.00001'),
        lambda b: b.replace(b'"delta":1e-05', b'"delta":NaN'),
        lambda b: b.replace(b'"bins"', b'"bin"'),
        lambda b: b.replace(b'"value_range":8.0', b'"value_range":8'),
        lambda b: b.replace(b'"value_range":8.0', b'"value_range":"Auto"'),
        lambda b: b.replace(b'"value_range":8.0', b'"value_range":0.0'),
        lambda b: b.replace(b"{", b'{"extra":1,', 1),
        lambda b: b"[" * 5000,
        lambda b: b"\xff",
        lambda b: b"{}" + b" " * 100_000,
    ],
)
def test_only_canonical_bytes_of_a_valid_plan_are_accepted(damage):
    data = plan_with().canonical()
    assert damage(data) != data
    with pytest.raises(Violation) as caught:
        Plan.from_canonical(damage(data))
    assert caught.value.code == "bad-plan"


@given(st.binary(max_size=200))
def test_garbage_is_a_violation_and_nothing_else(data):
    with pytest.raises(Violation):
        Plan.from_canonical(data)


def test_canonical_form_is_plain_sorted_json():
    data = plan_with().canonical()
    assert json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode() == data
