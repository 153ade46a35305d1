"""One imputer and one scaler at every site: constants of the plan, whatever a site's own data."""

import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_fixtures import WORKLOAD, describing, load_sites, run, section, training, weighted

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Refusal
from fedflow.learning import baselines
from fedflow.learning.clipping import check_trainable
from fedflow.learning.evaluation import exact_score
from fedflow.learning.first_model import plan_model
from fedflow.learning.plan import Plan
from fedflow.learning.plan_sections import ColumnSection, PreprocessingSection
from fedflow.learning.preprocessing import prepared, prepared_data
from fedflow.learning.statistics import section_toml
from fedflow.learning.workload import PersonData, Persons
from fedflow.site.trainer import perform

AGE = ColumnSection(name="age", fill=30.0, centre=50.0, scale=10.0)
WARD = ColumnSection(name="ward", fill=3.0, keep=(0, 1))
CODE = ColumnSection(name="code", fill=4.0)
SECTION = PreprocessingSection(clamp=4.0, columns=(AGE, WARD, CODE))


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return load_sites(tmp_path_factory.mktemp("tables"))


def people(*rows):
    x = np.array(rows, np.float32)[:, None, :]
    mask = np.ones(x.shape[:2], bool)
    return Persons(x, np.zeros(mask.shape, np.float32), mask, tuple(map(str, range(len(x)))))


def test_what_becomes_of_a_value():
    nan = np.nan
    out = prepared(people([60, 1, 0], [nan, 2, 4], [0, nan, 3]), training(SECTION), WORKLOAD).x
    # scaled, kept, kept; filled, dropped, "other", and the flag; clamped, filled by "other"
    assert out[:, 0].tolist() == [[1, 1, 0, 0], [-2, 3, 4, 1], [-4, 3, 3, 0]]


def test_the_same_value_is_the_same_at_every_site_though_their_means_differ(sites):
    """Fails where a site fills or scales by what it has itself."""
    means = [np.nanmean(site.train.x[:, :, 0]) for site in sites]
    assert min(np.diff(means)) > 10, "the sites are to differ"
    plan, odd = training(section(sites)), [[np.nan, np.nan, 1], [55, 2, 0]]
    seen = []
    for site in sites:
        joined = Persons.join([replace_rows(site.train, odd), site.train])
        seen.append(prepared(joined, plan, WORKLOAD).x[: len(odd), 0])
    assert (seen[0] == seen[1]).all()
    assert (seen[0] == seen[2]).all()


def replace_rows(like, rows):
    """People with one row each of the given values, shaped as ``like``."""
    some = people(*rows)
    x = np.zeros((len(rows), like.x.shape[1], 3), np.float32)
    x[:, :1], mask = some.x, np.zeros(x.shape[:2], bool)
    mask[:, 0] = True
    return Persons(x, np.zeros(mask.shape, np.float32), mask, some.ids)


def test_everybody_together_has_mean_zero_and_variance_one(sites):
    plan = training(section(sites))
    ready = [prepared_data(site, plan, WORKLOAD) for site in sites]
    values, shares = weighted(ready, 0)
    flags, _ = weighted(ready, 3)
    values, shares = values[flags == 0], shares[flags == 0]
    mean = np.average(values, weights=shares)
    assert mean == pytest.approx(0, abs=0.01)
    assert np.average((values - mean) ** 2, weights=shares) == pytest.approx(1, abs=0.02)
    local = [np.average(site.train.x[:, 0, 0]) for site in ready]
    assert max(local) - min(local) > 1, "and no single site has"


@given(st.floats(0, 100), st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan]))
def test_a_row_depends_on_itself_alone_and_stays_within_the_clamp(age, ward):
    plan = training(SECTION)
    alone = prepared(people([age, ward, 0]), plan, WORKLOAD).x
    company = prepared(people([age, ward, 0], [99, 0, 1], [np.nan] * 3), plan, WORKLOAD).x
    assert (alone[0] == company[0]).all()
    assert abs(alone[0, 0, 0]) <= 4
    assert alone[0, 0, 1] in (0, 1, 3)


def test_padding_stays_zero_and_the_site_s_data_as_they_were(sites):
    person = replace_rows(sites[0].train, [[50, 1, 2]])
    before = person.x.copy()
    out = prepared(person, training(SECTION), WORKLOAD)
    assert (out.x[0, 1] == 0).all()
    assert np.array_equal(person.x, before)


def test_training_scoring_and_baselines_all_see_prepared_data(sites):
    plan = training(section(sites), privacy__noise_multiplier=0.01)
    state = run(sites, plan)
    assert all(np.isfinite(values).all() for values in state.values())
    test = Persons.join([site.holdout for site in sites])
    assert 0 <= exact_score(WORKLOAD, test, state, plan) <= 1
    named = {str(at): site for at, site in enumerate(sites)}
    assert 0 <= baselines.pooled(WORKLOAD, named, plan, Csprng.from_seed(bytes(32))) <= 1
    other = training(
        section(sites).model_copy(update={"columns": (AGE, *section(sites).columns[1:])}),
        privacy__noise_multiplier=0.01,
    )
    assert not np.array_equal(run(sites, other)["first.weight"], state["first.weight"])


def test_the_section_is_in_the_digest_and_survives_toml_and_json(sites):
    made = section(sites)
    plan = training(made)
    assert Plan.from_canonical(plan.canonical()) == plan
    assert plan.digest() != training(SECTION).digest()
    read = tomllib.loads(section_toml(made))["preprocessing"]
    read["columns"] = tuple(
        {k: tuple(v) if k == "keep" else v for k, v in c.items()} for c in read["columns"]
    )
    assert PreprocessingSection.model_validate(read) == made


def test_the_shape_that_is_checked_is_that_of_prepared_data(sites):
    ready = prepared_data(sites[0], training(SECTION), WORKLOAD)
    assert ready.train.x.shape[2] == WORKLOAD.features == 4
    check_trainable(WORKLOAD, ready.train, "person")


def request(plan):
    return {"task": "check", "workload": "stays", "data": "", "plan": plan.canonical().decode()}


def test_a_site_s_check_refuses_before_any_round(sites):
    loaded = (WORKLOAD, sites[0])
    assert perform(request(training(SECTION)), b"", loaded).vector.size == 0
    assert perform(request(describing()), b"", loaded).vector.size == 0
    with pytest.raises(Refusal, match=r"missing values and no \[preprocessing\]"):
        perform(request(training(PreprocessingSection())), b"", loaded)


class Plain:
    """Two numbers a row, by its word never missing."""

    name, unit_column, reference_persons, score_range = "plain", "who", 50, (0.0, 1.0)
    features, bounds = 2, (-1.0, 1.0)


def test_values_missing_against_a_workload_s_word_are_refused_and_can_be_filled():
    plan = training(PreprocessingSection())
    whole, holes = people([0.5, 0.5]), people([0.5, np.nan])
    assert prepared(whole, plan, Plain()) is whole
    for data in (PersonData(holes, whole), PersonData(whole, holes)):
        with pytest.raises(Refusal, match="this site's data"):
            prepared_data(data, plan, Plain())
    columns = (ColumnSection(name="0", fill=0.0), ColumnSection(name="1", fill=0.25))
    filled = prepared(holes, training(PreprocessingSection(columns=columns)), Plain())
    assert filled.x.tolist() == [[[0.5, 0.25]]]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ((AGE, WARD), r"\[preprocessing\] has 2 columns, workload 'stays' has 3"),
        ((AGE, CODE, WARD), "column 1 of .* is 'code', that of workload 'stays' is 'ward'"),
    ],
)
def test_a_section_of_another_table_is_refused_naming_both(columns, text):
    with pytest.raises(Refusal, match=text):
        plan_model(WORKLOAD, training(PreprocessingSection(columns=columns)))


@pytest.mark.parametrize(
    ("at", "fields", "text"),
    [
        (0, {"fill": 101.0}, r"fill 101 is outside 0\.\.100"),
        (0, {"keep": (1,)}, "has no categories to keep"),
        (1, {"scale": 2.0}, "fill is a code, and they are not scaled"),
        (1, {"fill": 0.5}, "fill is a code"),
        (1, {"keep": (0, 4)}, "has the categories 0 to 3"),
    ],
)
def test_a_column_that_makes_no_sense_is_refused(at, fields, text):
    columns = list(SECTION.columns)
    columns[at] = columns[at].model_copy(update=fields)
    with pytest.raises(Refusal, match=text):
        plan_model(WORKLOAD, training(PreprocessingSection(columns=tuple(columns))))


def test_a_describing_plan_takes_data_as_they_are(sites):
    assert prepared_data(sites[0], describing(), WORKLOAD).train is sites[0].train
    with pytest.raises(ValueError, match=r"as they are: no \[preprocessing\]"):
        describing(preprocessing__columns=({"name": "age", "fill": 0.0},))
