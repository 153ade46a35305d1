"""Site data: bad files are refused naming row and column, persons stay whole."""

import gzip
import hashlib

import numpy as np
import pytest
from learning_fixtures import COLUMNS, site_rows, write_csv

from fedflow.errors import InputError, Refusal
from fedflow.learning import randhie
from fedflow.learning.workload import (
    Persons,
    find_workload,
    group_by_person,
    initial_model,
    is_held_out,
    model_spec,
)

workload = randhie.workload


def refused(tmp_path, rows, columns=COLUMNS):
    with pytest.raises(InputError) as caught:
        workload.load(write_csv(tmp_path / "site.csv", rows, columns))
    return str(caught.value)


def test_missing_column(tmp_path):
    columns = [name for name in COLUMNS if name != "disea"]
    assert "column disea is missing" in refused(tmp_path, site_rows(), columns)


def test_missing_unit_column(tmp_path):
    columns = [name for name in COLUMNS if name != "zper"]
    assert "column zper is missing" in refused(tmp_path, site_rows(), columns)


@pytest.mark.parametrize("bad", ["tall", "1_0", "inf", "nan", "1,5"])
def test_text_in_a_number(tmp_path, bad):
    rows = site_rows()
    rows[3]["mhi"] = bad
    message = refused(tmp_path, rows)
    assert "site.csv:5" in message
    assert "column mhi" in message
    assert bad in message


@pytest.mark.parametrize("bad", ["2", "yes", "", "0.5"])
def test_bad_label(tmp_path, bad):
    rows = site_rows()
    rows[0]["any_visit"] = bad
    message = refused(tmp_path, rows)
    assert "site.csv:2" in message
    assert "any_visit" in message


def test_one_class(tmp_path):
    assert "label 1" in refused(tmp_path, [row | {"any_visit": "1"} for row in site_rows()])


def test_no_rows(tmp_path):
    assert "no rows" in refused(tmp_path, [])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="empty"):
        workload.load(tmp_path / "empty.csv")


def test_empty_person_id(tmp_path):
    rows = site_rows()
    rows[1]["zper"] = " "
    message = refused(tmp_path, rows)
    assert "site.csv:3" in message
    assert "zper" in message


def test_too_many_rows_of_one_person(tmp_path):
    assert "'1000' has" in refused(tmp_path, [row | {"zper": "1000"} for row in site_rows()])


def test_short_row_and_duplicate_column(tmp_path):
    path = write_csv(tmp_path / "site.csv", site_rows())
    path.write_text(path.read_text() + "1,2,3\n")
    with pytest.raises(InputError, match="3 values"):
        workload.load(path)
    assert "twice" in refused(tmp_path, site_rows(), [*COLUMNS, "mhi"])


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        workload.load(tmp_path / "none.csv")
    path = tmp_path / "site.csv"
    path.write_bytes(b"zper\n\xff\xfe\n")
    with pytest.raises(InputError, match="UTF-8"):
        workload.load(path)
    packed = gzip.compress(write_csv(tmp_path / "good.csv", site_rows()).read_bytes())
    for name, data in (("cut", packed[:-20]), ("broken", packed[:30] + b"??" + packed[32:])):
        (tmp_path / f"{name}.csv.gz").write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            workload.load(tmp_path / f"{name}.csv.gz")


def test_persons_are_whole_and_split_by_their_id_only(tmp_path):
    rows = site_rows(persons=300)
    data = workload.load(write_csv(tmp_path / "site.csv", rows))
    assert not set(data.train.ids) & set(data.holdout.ids)
    assert 0.1 < len(data.holdout) / 300 < 0.3
    assert all(is_held_out("randhie", person) for person in data.holdout.ids)
    counts = {p: sum(row["zper"] == p for row in rows) for p in data.train.ids}
    assert data.train.mask.sum(axis=1).tolist() == [counts[p] for p in data.train.ids]
    alone = [row for row in rows if row["zper"] in data.train.ids[:20]]
    again = workload.load(write_csv(tmp_path / "few.csv", alone))
    assert set(again.train.ids) == set(data.train.ids[:20])
    assert np.array_equal(again.train.x, data.train.x[:20])


def test_holdout_known_answer():
    held = [person for person in map(str, range(200)) if is_held_out("randhie", person)]
    digest = hashlib.sha256(b"fedflow/1 holdout\0randhie\0" + held[0].encode()).digest()
    assert digest[0] <= 51
    assert 20 < len(held) < 60
    assert held != [person for person in map(str, range(200)) if is_held_out("other", person)]


def test_nobody_left_to_train_on():
    held = [person for person in map(str, range(100)) if is_held_out("d", person)][:2]
    x, y = np.zeros((2, 1), np.float32), np.array([0, 1], np.float32)
    with pytest.raises(InputError, match="no persons"):
        group_by_person(x, y, held, dataset="d", max_rows=1, where="f")


def test_private_data_has_no_telling_repr(data):
    assert repr(data.train) == "Persons(<private>)"
    assert data.train.ids[0] not in repr(data)


def test_scaling_uses_no_statistic_of_the_data(tmp_path):
    rows = site_rows(persons=40)
    one = workload.load(write_csv(tmp_path / "a.csv", rows))
    rows[-1]["mhi"], rows[-1]["disea"] = "-1e6", "1e6"
    two = workload.load(write_csv(tmp_path / "b.csv", rows))
    changed = (one.train.x != two.train.x).any(axis=(1, 2)).sum()
    changed += (one.holdout.x != two.holdout.x).any(axis=(1, 2)).sum()
    assert changed == 1
    assert np.abs(two.train.x).max() <= 3


def test_the_vendored_data_has_no_outcome_column_and_splits_into_six_sites(tmp_path):
    table = randhie.vendored_table()
    head = table.split(b"\n", 1)[0].decode().split(",")
    outcomes = "outpdol drugdol suppdol mentdol inpdol meddol totadm inpmis mentvis mdvis notmdvis"
    assert not set(head) & {*outcomes.split(), "lnmeddol", "binexp"}
    assert hashlib.sha256(table).hexdigest().startswith("537ee9b5c78dbe88")
    sites = randhie.partition_sites(table)
    assert list(sites) == ["1", "2", "3", "4", "5", "6"]
    assert sum(site.count(b"\n") - 1 for site in sites.values()) == 20_190
    (tmp_path / "3.csv").write_bytes(sites["3"])
    data = workload.load(tmp_path / "3.csv")
    assert len(data.train) + len(data.holdout) == 735
    assert data.train.mask.sum() + data.holdout.mask.sum() == 2436


def test_workloads_are_found_by_name():
    assert find_workload("randhie") is workload
    with pytest.raises(Refusal, match=r"installed: .*randhie") as caught:
        find_workload("os:system")
    assert caught.value.code == "unknown-workload"


def test_initial_model_is_public_and_constant():
    import torch

    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = initial_model(workload), initial_model(workload)
    assert torch.equal(before, torch.get_rng_state())
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert model_spec(workload).dimension == randhie.FEATURES


def test_join(data):
    both = Persons.join([data.train, data.holdout])
    assert both.ids == data.train.ids + data.holdout.ids
    assert both.x.shape[0] == len(both)
