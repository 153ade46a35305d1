"""Tables: what is read, what is refused and where, and a model that keeps persons apart."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus.validators import ModuleValidator

sys.path.insert(0, str(Path(__file__).parents[1] / "learning"))

from table_fixtures import COLUMNS, WORKLOAD, found, rows_of, run, training, weighted, write

from fedflow.errors import InputError, Misuse
from fedflow.learning import randhie
from fedflow.learning.baselines import pooled_holdout
from fedflow.learning.clipping import check_trainable
from fedflow.learning.evaluation import exact_score
from fedflow.learning.plan import load_plan
from fedflow.learning.preprocessing import prepared_data
from fedflow.learning.statistics import section_of
from fedflow.learning.workload import Workload, initial_model
from fedflow.workloads.tabular import Categorical, Numeric, Tabular, randhie_table


def table(model="mlp", **fields):
    columns = [Numeric("age", 0, 100), Categorical("ward", values=("a", "b", "c"))]
    return Tabular(
        "t",
        unit_column="who",
        label="ill",
        columns=[*columns, Categorical("code", buckets=4)],
        reference_persons=60,
        model=model,
        max_rows=2,
        **fields,
    )


def test_cells_become_numbers_codes_or_missing(tmp_path):
    rows = rows_of(0)
    for row, (age, ward) in zip(rows, (("", "c"), ("30.5", "no such")), strict=False):
        row |= {"who": "x", "age": age, "ward": ward}
    data = table().load(write(tmp_path / "t.csv", rows))
    (part,) = [p for p in (data.train, data.holdout) if "x" in p.ids]
    read = part.x[part.ids.index("x")]
    assert np.isnan(read[0, 0])
    assert read[1, 0] == 30.5
    assert read[:, 1].tolist() == [2, 3], "a word on no list is 'other'"
    assert set(np.unique(data.train.x[:, :, 2])) <= {0, 1, 2, 3}
    again = table().load(write(tmp_path / "u.csv", rows[::-1]))
    assert sorted(again.train.ids) == sorted(data.train.ids)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("age", "101", r"t\.csv:4: column age: '101' cannot be used .*0 to 100"),
        ("age", "old", r"t\.csv:4: column age: 'old' is not a number"),
        ("age", "nan", r"t\.csv:4: column age: 'nan' cannot be used"),
        ("ill", "2", r"t\.csv:4: column ill"),
        ("who", "", r"t\.csv:4: column who: is empty"),
        ("code", "", r"t\.csv:4: column code: is empty"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named(tmp_path, column, value, text):
    rows = rows_of(0)
    rows[2][column] = value
    with pytest.raises(InputError, match=text):
        WORKLOAD.load(write(tmp_path / "t.csv", rows))


def test_a_column_that_is_not_there_is_named(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "ward"} for row in rows_of(0)]
    with pytest.raises(InputError, match="column ward is missing"):
        WORKLOAD.load(write(tmp_path / "t.csv", rows, [c for c in COLUMNS if c != "ward"]))


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_the_model_is_public_private_and_opacus_knows_its_layers(tmp_path, model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = (initial_model(table(model)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()), "no weight is torch's generator's"
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert (abs(one["first.weight"]).max() > 0) == (model == "mlp")
    assert not ModuleValidator.validate(table(model).build_model())
    assert isinstance(table(model), Workload)
    data = table(model).load(write(tmp_path / "t.csv", rows_of(1)))
    plan = training(load_section())
    check_trainable(table(model), prepared_data(data, plan, table(model)).train, "person")


def load_section():
    from test_learning_preprocessing import SECTION

    return SECTION


def test_codes_are_one_hot_and_every_code_has_its_own_weights():
    workload = table("logistic")
    model = workload.build_model()
    with torch.no_grad():
        model.first.weight.copy_(torch.arange(11.0)[None])
    # order of inputs: age, its flag, four wards (the last "other"), five codes
    x = torch.tensor([[0.0, 2, 4, 1], [1, 3, 0, 0]])
    assert model(x).tolist() == [1 + (2 + 2) + (6 + 4), (2 + 3) + 6]


@pytest.mark.parametrize(
    "columns",
    [
        [],
        [Numeric("ill", 0, 1)],
        [Numeric("a", 1, 1)],
        [Categorical("a")],
        [Categorical("a", values=("x",), buckets=3)],
        [Categorical("a", values=("x", "x"))],
    ],
)
def test_a_table_that_makes_no_sense_is_a_programmer_s_mistake(columns):
    with pytest.raises(Misuse):
        Tabular("t", unit_column="who", label="ill", columns=columns, reference_persons=9)


def test_the_packaged_table_has_missing_cells_and_its_plan_fills_them(tmp_path, request):
    tables = randhie.partition_sites(randhie.vendored_table())
    (tmp_path / "2.csv").write_bytes(tables["2"])
    data = randhie_table.load(tmp_path / "2.csv")
    at = [c.name for c in randhie_table.columns].index("ghindx")
    assert np.isnan(data.train.x[data.train.mask][:, at]).any()
    plan = load_plan(request.config.rootpath / "flows" / "plans" / "tabular.toml")
    ready = prepared_data(data, plan, randhie_table)
    assert ready.train.x.shape[2] == randhie_table.features
    low, high = randhie_table.bounds
    for part in (ready.train, ready.holdout):
        assert np.isfinite(part.x).all()
        assert low <= part.x.min()
        assert part.x.max() <= high


def test_the_packaged_plans_describe_the_table_and_learn_from_it(tmp_path, request):
    plans = request.config.rootpath / "flows" / "plans"
    describing, training_plan = (
        load_plan(plans / f"{name}.toml") for name in ("preprocessing", "tabular")
    )
    sites = {}
    for label, rows in randhie.partition_sites(randhie.vendored_table()).items():
        (tmp_path / f"{label}.csv").write_bytes(rows)
        sites[label] = randhie_table.load(tmp_path / f"{label}.csv")
    parts = list(sites.values())
    columns = found(parts, describing, randhie_table)
    values, shares = weighted(parts, 7)
    missing = np.average(np.isnan(values), weights=shares)
    # five standard errors of the noise: wrong once in two million runs
    assert columns[7].missing == pytest.approx(missing, abs=5 * columns[7].error)
    assert columns[7].error < 0.01
    written = training_plan.preprocessing.columns
    for column, now, then in zip(
        randhie_table.columns, section_of(columns).columns, written, strict=True
    ):
        assert now.fill == pytest.approx(then.fill, abs=0.05 * (column.high - column.low))
    short = training_plan.model_copy(
        update={"plan": training_plan.plan.model_copy(update={"rounds": 10})}
    )
    state = run(parts, short, randhie_table)
    assert exact_score(randhie_table, pooled_holdout(sites), state, short) > 0.65
