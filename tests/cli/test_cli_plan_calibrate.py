"""`fedflow plan calibrate`: what it prints fits the budget, and what it writes is only that."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedflow.cli.plan import app
from fedflow.cli.toml_numbers import with_numbers
from fedflow.errors import InputError, Refusal
from fedflow.learning.plan import load_plan
from fedflow.privacy.accounting import epsilon_pld
from fedflow.privacy.plan_cost import evaluation_event, plan_cost, training_event

PLAN = Path(__file__).parents[2] / "flows" / "plans" / "randhie.toml"


@pytest.fixture
def path(tmp_path):
    out = tmp_path / "plan.toml"
    out.write_text(PLAN.read_text())
    return out


def calibrate(path, *options):
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["calibrate", str(path), *options])
    if result.exception:
        raise result.exception
    return json.loads(result.output) if "--json" in options else result.output


def test_the_written_plan_costs_no_more_than_asked_and_keeps_its_comments(path):
    path.chmod(0o640)
    before = path.read_text().splitlines()
    out = calibrate(path, "--epsilon", "2", "--evaluation-epsilon", "1", "--write")
    assert "person" in out
    assert "δ = 1e-05" in out
    assert "written to" in out
    after = path.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 2
    assert all(new.startswith("noise_multiplier = ") for _, new in changed)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["plan.toml"]
    total = plan_cost(load_plan(path)).total
    assert 1.9 < total.train_epsilon <= 2.0
    assert 0.9 < total.evaluate_epsilon <= 1.0


def test_without_write_nothing_changes_and_the_lines_are_toml(path):
    facts = calibrate(path, "--epsilon", "3", "--json")
    assert path.read_text() == PLAN.read_text()
    lines = tomllib.loads(facts["toml"])
    assert lines["privacy"] == {"noise_multiplier": facts["training"]["noise_multiplier"]}
    assert lines["evaluation"] == {"noise_multiplier": facts["evaluation"]["noise_multiplier"]}
    assert facts["training"]["fixed_plan"] < facts["training"]["charged"] <= 3.0
    assert (facts["unit"], facts["adjacency"], facts["accounting"]) == (
        "person",
        "zero-out",
        "adaptive",
    )
    out = calibrate(path, "--epsilon", "3")
    assert facts["toml"] in out
    assert "lines for" in out


def test_trials_of_plans_charged_whole_share_epsilon_and_delta(path):
    options = ("--epsilon", "3", "--trials", "4", "--accounting", "fixed-plan")
    with pytest.raises(SystemExit):
        calibrate(path, *options)
    facts = calibrate(path, *options, "--delta", "1e-5", "--json", "--write")
    plan = load_plan(path)
    assert plan.privacy.delta == 2.5e-6
    assert facts["spare"] == 2
    for event, releases in ((training_event(plan), 16), (evaluation_event(plan), 8)):
        one = epsilon_pld([event.repeated(releases + 2)], 2.5e-6)
        assert 2.9 < 4 * one <= 3.0
    again = calibrate(path, *options, "--delta", "1e-5")
    assert "Each charge takes δ = 2.5e-06" in " ".join(again.split())
    assert f"noise_multiplier = {plan.privacy.noise_multiplier}" in again


def test_trials_of_an_adaptive_account_take_more_noise(path):
    one = calibrate(path, "--epsilon", "3", "--json")["training"]
    four = calibrate(path, "--epsilon", "3", "--trials", "4", "--json")["training"]
    assert four["noise_multiplier"] > 1.2 * one["noise_multiplier"]
    assert four["charged"] <= 3.0


def test_a_site_is_told_that_it_pays_both(path):
    text = path.read_text().replace('unit = "person"', 'mechanism = "site"\nunit = "site"')
    path.write_text(text)
    out = " ".join(calibrate(path, "--epsilon", "8").split())
    assert "One account of the site pays for both rows" in out
    assert "ε per site" in out
    with pytest.raises(Refusal, match="whole"):
        calibrate(path, "--epsilon", "8", "--accounting", "fixed-plan")


def test_what_cannot_be_done_is_said(path):
    with pytest.raises(Refusal, match="no noise multiplier"):
        calibrate(path, "--epsilon", "0.001")
    for wrong in ("0", "2e-3", "-1"):
        with pytest.raises(SystemExit):
            calibrate(path, "--epsilon", "3", "--delta", wrong)
    with pytest.raises(SystemExit):
        calibrate(path, "--epsilon", "3", "--accounting", "gdp")
    assert path.read_text() == PLAN.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "[a]\nx = 1 # one\ny = 2\n[b]\nx = 3\n",
        "[ a ] # first\n  x=1\n",
        "[a]\r\nx = 1\r\n",
    ],
)
def test_one_number_changes_and_nothing_else(text):
    wanted = tomllib.loads(text)
    wanted["a"]["x"] = 2.5
    changed = with_numbers(text, {("a", "x"): 2.5}, "f.toml")
    assert tomllib.loads(changed) == wanted
    assert changed.replace("2.5", "1", 1) == text


def test_layouts_it_cannot_change_are_refused_not_guessed():
    hidden = '[a]\nz = """\n[b]\nx = 5\n"""\nx = 1\n[b]\nx = 7\n'
    for text in ("a = { x = 1 }\n", "a.x = 1\n", "[a]\n'x' = 1\n", hidden):
        with pytest.raises(InputError, match=r"by hand: a\.x = 2\.0"):
            with_numbers(text, {("a", "x"): 2.0}, "f.toml")
    with pytest.raises(InputError, match="no such field"):
        with_numbers("[a]\ny = 1\n", {("a", "x"): 2.0}, "f.toml")


def test_a_folder_that_cannot_be_written_to_keeps_the_plan(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="No space left"):
        calibrate(path, "--epsilon", "3", "--write")
    assert path.read_text() == PLAN.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["plan.toml"]


def test_a_plan_that_only_scores_is_calibrated_for_one_evaluation(path):
    path.write_text(path.read_text().replace("rounds = 16", "rounds = 0"))
    before = load_plan(path)
    out = calibrate(path, "--epsilon", "0.5", "--write")
    assert "nothing is trained" in out
    assert "training" not in out.partition("Counted")[0]
    after = load_plan(path)
    assert after.privacy == before.privacy
    total = plan_cost(after).total
    assert 0.45 < total.evaluate_epsilon <= 0.5
    facts = calibrate(path, "--epsilon", "0.5", "--json")
    assert facts["training"] is None
    assert tomllib.loads(facts["toml"]).keys() == {"evaluation"}


def test_a_plan_that_only_describes_is_calibrated_for_its_sums(path):
    path.write_text((PLAN.parent / "preprocessing.toml").read_text())
    facts = calibrate(path, "--epsilon", "1", "--json")
    assert facts["evaluation"] is None
    calibrate(path, "--epsilon", "1", "--write")
    total = plan_cost(load_plan(path)).total
    assert 0.97 < total.train_epsilon <= 1
    assert total.evaluate_epsilon == 0
