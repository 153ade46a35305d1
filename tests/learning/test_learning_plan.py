"""Plans: what a person gets told, and that bytes, plan and digest are one to one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learning_fixtures import plan_with
from pydantic import BaseModel, ConfigDict

from fedflow.errors import InputError, Violation
from fedflow.learning.plan import Plan, load_plan
from fedflow.settings_file import load_toml

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
        ("rounds", "rounds = 0", "plan.rounds", "at least 1"),
        ("unit", 'unit = "row"', "privacy.unit", '"person"'),
        ("sample_rate", "sample_rate = 1.5", "privacy.sample_rate", "at most 1"),
        ("bits", "bits = 64", "secure_aggregation.bits", "32"),
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


def test_every_field_changes_the_digest():
    base = plan_with()
    seen = {base.digest()}
    changes = 0
    for section, fields in base.model_dump().items():
        for field, value in fields.items():
            if field in ("bits", "unit", "optimizer") or (section, field) == ("strategy", "name"):
                continue
            new = value + "x" if isinstance(value, str) else value / 2
            new = value + 1 if isinstance(value, int) else new
            if field == "momentum":
                new = 0.5
            seen.add(plan_with(**{f"{section}__{field}": new}).digest())
            changes += 1
    assert len(seen) == changes + 1


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
