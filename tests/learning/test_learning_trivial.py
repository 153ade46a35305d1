"""The workload for trying a federation: made-up rows that read like anybody's."""

import pytest

from fedflow.errors import InputError
from fedflow.learning.trivial import site_table, write_site
from fedflow.learning.workload import find_workload, initial_model

workload = find_workload("trivial")


def test_rows_are_the_same_for_a_name_and_differ_between_sites(tmp_path):
    assert site_table("a") == site_table("a")
    assert site_table("a").split(b",")[5:] != site_table("b").split(b",")[5:]
    write_site(tmp_path / "rows.csv", "a")
    data = workload.load(tmp_path / "rows.csv")
    assert len(data.train) + len(data.holdout) == 120
    assert set(data.train.y.ravel()) == set(data.holdout.y.ravel()) == {0.0, 1.0}
    assert abs(data.train.x).max() <= 1.0
    assert sum(array.size for array in initial_model(workload).values()) == data.train.x.shape[2]


def test_a_damaged_row_is_named(tmp_path):
    lines = site_table("a").decode().splitlines()
    lines[7] = lines[7].replace(",", ",x", 1)
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"rows\.csv:8.*column a"):
        workload.load(tmp_path / "rows.csv")
