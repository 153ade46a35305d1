"""`fedflow plan check`: what it says about sums, rounding and who shares with whom."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from plans import SUMMED, make_plan
from typer.testing import CliRunner

from fedflow.cli.grouping import Grouping, median_variance
from fedflow.cli.plan import app
from fedflow.cli.rounding import Rounding
from fedflow.crypto.csprng import Csprng
from fedflow.errors import InputError, Refusal
from fedflow.privacy.noise import gaussian
from fedflow.secagg.quantise import integer_limit

PLAN = Path(__file__).parents[2] / "flows" / "plans" / "randhie.toml"
AUTO = {"secure_aggregation__value_range": "auto"}


@pytest.fixture
def check(tmp_path):
    def run(*options, **settings):
        text = PLAN.read_text()
        for field, value in settings.items():
            text, found = re.subn(rf"(?m)^{field} = .*$", f"{field} = {value}", text)
            assert found == 1
        path = tmp_path / "plan.toml"
        path.write_text(text)
        result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["check", str(path), *options])
        if result.exception:
            raise result.exception
        return json.loads(result.output) if "--json" in options else result.output

    return run


def test_a_small_federation(check):
    out = check()
    for words in (
        "complete graph: every site shares with all 5 others, 4 shares",
        "suite x25519",
        "32 bits per coordinate: 6 sites x 357913941 = 2147483646 <= 2^31 - 1",
        "first round: updates within ±128 in steps of 3.6e-07",
        "later rounds narrow the range",
    ):
        assert words in out
    assert "warning" not in out
    facts = check("--json")
    assert facts["graph"] == {
        "kind": "complete",
        "degree": 5,
        "shares": 4,
        "window": 0,
        "window_minimum": 0,
    }
    assert (facts["bits"], facts["suite"], facts["weighting"]) == (32, "x25519", "uniform")
    rounding = facts["rounding"]
    assert rounding["automatic"]
    assert rounding["warning"] == ""
    assert rounding["value_range"] == 128.0
    assert rounding["rounding_stddev"] < 1e-5 * rounding["noise_stddev"]


@pytest.mark.parametrize("sites", [257, 16_384])
def test_a_large_federation_is_a_ring(check, sites):
    out, facts = check("--sites", str(sites)), check("--sites", str(sites), "--json")
    graph = facts["graph"]
    assert graph["kind"] == "ring"
    assert graph["degree"] == 2 * graph["window"] < 256
    assert 1 < graph["window_minimum"] < graph["window"]
    assert f"k = {graph['degree']} nearest, t = {graph['shares']} shares" in out
    assert f"{graph['window']} in a row keeps {graph['window_minimum']} survivors" in out
    assert "at random" in out
    assert f"{sites} sites x {integer_limit(sites)} =" in out


def test_too_many_sites_or_too_few_bits(check):
    with pytest.raises(SystemExit):
        check("--sites", "16385")
    with pytest.raises(Refusal, match="at least 9 are needed"):
        check("--sites", "200", bits="8")
    with pytest.raises(InputError, match=r"secure_aggregation.bits"):
        check(bits="7")


def test_the_other_suite_is_named(check):
    assert "suite x25519-mlkem768" in check(suite='"x25519-mlkem768"')
    assert check("--json", weighting='"declared"')["weighting"] == "declared"


@pytest.mark.parametrize("sites", [6, 100])
@pytest.mark.parametrize("bits", [9, 12, 20])
def test_loud_rounding_is_warned_of_and_the_advice_helps(check, bits, sites):
    facts = check("--json", "--sites", str(sites), bits=str(bits))["rounding"]
    loud = facts["rounding_stddev"] > 0.1 * facts["noise_stddev"]
    assert bool(facts["warning"]) == loud
    if not loud:
        return
    assert facts["warning"] in check("--sites", str(sites), bits=str(bits))
    advised = int(re.search(r"secure_aggregation.bits to at least (\d+)", facts["warning"])[1])
    assert not check("--json", "--sites", str(sites), bits=str(advised))["rounding"]["warning"]
    assert check("--json", "--sites", str(sites), bits=str(advised - 1))["rounding"]["warning"]


def test_a_fixed_range_can_be_lowered_instead(check):
    facts = check("--json", bits="12", value_range="60.0")["rounding"]
    assert not facts["automatic"]
    assert facts["value_range"] == 60.0
    lower = float(re.search(r"value_range to (\S+)$", facts["warning"])[1])
    assert lower < 60
    assert not check("--json", bits="12", value_range=repr(0.98 * lower))["rounding"]["warning"]
    assert "later rounds" not in check(value_range="60.0")


def test_advice_never_clips_the_noise():
    plan = make_plan(secure_aggregation__bits=8, secure_aggregation__value_range=1e3)
    warning = Rounding.of(plan, 100, 800).warning
    assert "value_range to" not in warning
    assert "bits to at least" in warning
    wide = make_plan(secure_aggregation__bits=8, secure_aggregation__value_range=1e6)
    assert 'set secure_aggregation.value_range to "auto"' in Rounding.of(wide, 100, 800).warning


def test_without_the_workload_the_range_is_chosen_later(check):
    out = check(workload='"elsewhere"')
    assert "chosen when the job is made" in out
    assert "no sum of coordinates wraps" in out
    facts = check("--json", workload='"elsewhere"')["rounding"]
    assert facts["value_range"] is facts["resolution"] is facts["noise_stddev"] is None
    out = check(workload='"elsewhere"', value_range="8.0")
    assert "within ±8 in steps" in out
    assert "privacy noise is not known" in out
    assert check("--json", workload='"elsewhere"', value_range="8.0")["rounding"]["resolution"] > 0


@pytest.fixture
def summed(tmp_path):
    text = PLAN.read_text().replace('name = "fedavg"', 'name = "fedsgd"')
    text = text.replace("local_steps = 50", "local_steps = 1")
    text = text.replace('unit = "person"', 'mechanism = "summed"\nunit = "person"')

    def run(*options, minimum=4):
        path = tmp_path / "summed.toml"
        path.write_text(text.replace("minimum = 4", f"minimum = {minimum}"))
        result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["check", str(path), *options])
        if result.exception:
            raise result.exception
        return json.loads(result.output) if "--json" in options else result.output

    return run


def test_every_epsilon_has_its_unit_delta_adjacency_and_who_looks(check):
    out = check()
    for words in (
        "training: ε per person at δ = 1e-05",
        "evaluation: ε per person at δ = 1e-05",
        "zero-out",
        "add/rem.",
        "replace",
        "server + 1",
        "everyone",
        "assumed: all rows of one person are at one site only",
        "other sites' noise adds is not counted",
    ):
        assert words in out
    facts = check("--json")
    assert (facts["unit"], facts["delta"]) == ("person", 1e-5)
    assert facts["shares"] is None
    assert [row["round"] for row in facts["exposure"]] == list(range(1, 17))
    last = facts["exposure"][-1]
    for account in ("train", "evaluate"):
        assert set(last[account]) == {"server and colluders", "everyone"}
        for figures in last[account].values():
            assert figures["zero-out"] == figures["add-remove"] < figures["replace-one"]
    worst = last["train"]["server and colluders"]["zero-out"]
    assert worst == facts["rounds"][-1]["train_epsilon_pld"]
    assert f"{worst:.3f}" in out
    assert (
        last["evaluate"]["everyone"]["zero-out"]
        < last["evaluate"]["server and colluders"]["zero-out"]
    )


def test_noise_in_shares_is_explained(summed):
    out = summed()
    for words in (
        "noise in shares: each site adds a standard deviation of",
        "so that 3 honest shares reach the plan's",
        "discrete noise costs nothing more",
        "Kairouz et al. 2021, Proposition 14",
        "Zhu and Wang 2019, Theorem 5",
        "per person at δ = 1e-05 against the server and 1 colluders",
    ):
        assert words in out
    facts = summed("--json")
    shares = facts["shares"]
    assert shares["share_steps"] >= 8
    assert shares["share"] == pytest.approx(shares["share_steps"] * shares["resolution"])
    assert 1.0 < shares["inflation"] < 1.25
    assert shares["gap"] < 1e-200
    charged = facts["rounds"][-1]["train_epsilon_pld"]
    assert shares["conservative_epsilon"] > charged
    assert f"ε {shares['conservative_epsilon']:.3f}" in out
    last = facts["exposure"][-1]["train"]
    assert last["everyone"]["zero-out"] < last["server and colluders"]["zero-out"]


def test_noise_sized_for_fewer_sites_than_a_sum_opens_for_is_pointed_out(summed):
    facts = summed("--sites", "20", "--json")
    assert facts["thresholds"]["survivors"] == 11
    assert "cohort.minimum = 11 the same ε takes 0.55 of it" in facts["advice"]
    assert facts["advice"] in summed("--sites", "20")
    assert summed("--sites", "20", "--json", minimum=11)["advice"] == ""
    assert "hint" not in summed("--sites", "20", minimum=11)


def test_a_plan_that_only_scores_has_no_figure_of_training(tmp_path):
    path = tmp_path / "plan.toml"

    def check(*options, rounds):
        text = PLAN.with_name("trivial.toml").read_text()
        path.write_text(text.replace("rounds = 10\n", f"rounds = {rounds}\n"))
        result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["check", str(path), *options])
        assert result.exception is None
        return result.output

    out = check(rounds=0)
    assert "nothing is trained" in out
    assert "evaluation: ε per person" in out
    for words in ("training: ε", "whole plan", "first round", "noise in shares: each"):
        assert words not in out
    facts = json.loads(check("--json", rounds=0))
    assert facts["shares"] is facts["rounding"] is None
    (row,) = facts["rounds"]
    assert row["train_epsilon"] == row["train_epsilon_pld"] == 0
    assert row["evaluate_epsilon"] > 0
    assert "whole plan" in check(rounds=10), "the figure that must not be shown is one of training"


GROUPS = Path(__file__).parents[2] / "flows" / "plans" / "robust-groups.toml"


def checked(path, *options):
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["check", str(path), *options])
    if result.exception:
        raise result.exception
    return json.loads(result.output) if "--json" in options else result.output


def test_the_price_of_groups_is_printed():
    out = " ".join(checked(GROUPS, "--sites", "9").split())
    for words in (
        "3 groups of 3 sites or more: 3 rounds, a cycle, make one step along the median",
        "8 steps in all; each site trains in 8 rounds",
        "Wrong sites in up to 1 of the groups do not decide a coordinate",
        "price of the median: 1.16 times the noise of one mean over all sites",
        "A site trains once in a cycle of groups, and pays for that only.",
    ):
        assert words in out
    facts = checked(GROUPS, "--sites", "9", "--json")["groups"]
    assert (facts["groups"], facts["smallest"], facts["survivors"]) == (3, 3, 3)
    with pytest.raises(Refusal, match="8 sites in 3 groups are 2 in the smallest"):
        checked(GROUPS, "--sites", "8")


def test_noise_in_shares_makes_groups_dearer():
    fields = {"cohort__minimum": 3, "evaluation__every": 3, "plan__rounds": 9}
    plan = make_plan(**SUMMED, **fields, participation__groups=3)
    found = Grouping.of(plan, 15)
    # One sum of 15 could size its shares for 14 honest sites, where a group's are for two.
    assert found.noise_factor_one_sum == pytest.approx(found.noise_factor * math.sqrt(14 / 2))
    assert f"{found.noise_factor_one_sum:.2f} times" in found.sentences()[1]
    assert Grouping.of(make_plan(), 15) is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_the_variance_of_a_median_is_what_is_drawn(count):
    """100,000 medians: the standard error of their variance is below half a percent of it."""
    drawn = gaussian(100_000 * count, 1.0, Csprng.from_seed(bytes(32))).reshape(count, -1)
    assert np.median(drawn, axis=0).var() == pytest.approx(median_variance(count), rel=0.03)


def test_the_noise_of_a_median_is_near_its_limit_for_many():
    assert math.sqrt(51 * median_variance(51)) == pytest.approx(math.sqrt(math.pi / 2), rel=0.01)


def test_bytes_are_planned(tmp_path):
    """35 coordinates and a weight at 32 bits; half of them, rounded up, at 16."""
    plans = Path(__file__).parents[2] / "flows" / "plans"
    dense = checked(plans / "robust-loss.toml", "--json")["sending"]
    sparse = checked(plans / "sparse.toml", "--json")["sending"]
    assert (dense["sent"], dense["update_bytes"]) == (35, 144)
    assert (sparse["sent"], sparse["update_bytes"]) == (18, 38)
    assert "18 of 35 coordinates at 16 bits" in checked(plans / "sparse.toml")


def test_what_an_evaluation_counts_more_has_its_price(check, tmp_path):
    extra = "4.5\npersonalised = true\nfairness_bins = 5"
    assert "evaluations count" not in check()
    text = PLAN.read_text().replace("noise_multiplier = 4.5", f"noise_multiplier = {extra}")
    (tmp_path / "more.toml").write_text(text)
    runner = CliRunner(env={"COLUMNS": "400"})
    plain = check("--json")
    for sites, words in ((6, "that tells nothing"), (300, "it takes more sites")):
        options = ["check", str(tmp_path / "more.toml"), "--sites", str(sites)]
        out = runner.invoke(app, options).output
        assert "by each site's own model too" in out
        assert f"of {sites} sites on average" in out
        assert words in out
        assert "all counts have 1.73 times the noise, at the same ε" in out
    facts = json.loads(runner.invoke(app, ["check", str(tmp_path / "more.toml"), "--json"]).output)
    assert (facts["rounds"], len(facts["counted"])) == (plain["rounds"], 3)
    large = text.replace("minimum = 4 ", "minimum = 250 ")
    (tmp_path / "more.toml").write_text(large)
    out = runner.invoke(app, ["check", str(tmp_path / "more.toml"), "--sites", "300"]).output
    assert "noise of ± 12.1 sites" in out
    assert "tells nothing" not in out
