"""Dealing rows to sites: nothing is lost, and the skew is what was asked for."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse
from fedflow.simulation.partition import _gamma, by_key, dirichlet, holdings, iid, shards
from fedflow.simulation.partition_picture import Panel, drawn

LABELS = np.repeat(np.arange(10), 600)


def source(seed=0):
    return Csprng.from_seed(seed.to_bytes(32, "big"))


@given(st.integers(40, 300), st.integers(1, 20), st.floats(0.01, 100), st.integers(0, 5))
def test_every_row_is_at_exactly_one_site(rows, sites, alpha, seed):
    labels = np.arange(rows) % 3
    for parts in (
        iid(rows, sites, source(seed)),
        shards(labels, sites, 2, source(seed)),
        dirichlet(labels, sites, alpha, source(seed)),
    ):
        assert len(parts) == sites
        assert sorted(np.concatenate(parts)) == list(range(rows))


def test_iid_is_alike_everywhere_and_of_equal_size():
    parts = iid(len(LABELS), 10, source())
    assert {len(part) for part in parts} == {600}
    held = holdings(LABELS, parts)
    assert held.min() > 30  # 60 expected, standard deviation 7
    assert held.max() < 95


def test_two_shards_are_about_two_labels():
    held = holdings(LABELS, shards(LABELS, 100, 2, source()))
    kinds = (held > 0).sum(axis=1)
    assert kinds.max() <= 2, "a shard of 30 rows lies within one of 600"
    assert set(held.sum(axis=1)) == {60}


@pytest.mark.parametrize(("alpha", "least", "most"), [(0.1, 0.5, 1.0), (100.0, 0.0, 0.2)])
def test_a_small_alpha_leaves_a_label_at_few_sites(alpha, least, most):
    held = holdings(LABELS, dirichlet(LABELS, 10, alpha, source()))
    largest = (held.max(axis=0) / held.sum(axis=0)).mean()
    assert least < largest < most


@pytest.mark.parametrize("shape", [0.05, 0.3, 1.0, 5.0])
def test_dirichlet_shares_are_beta_distributed(shape):
    """One share of a symmetric Dirichlet of n is Beta(a, (n - 1) a)."""
    draws = [_gamma(shape, 4, source(i)) for i in range(800)]
    shares = [draw[0] / draw.sum() for draw in draws]
    assert kstest(shares, "beta", args=(shape, 3 * shape)).pvalue > 1e-4


def test_the_same_seed_deals_the_same_way():
    one, same, other = (dirichlet(LABELS, 7, 0.5, source(s)) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_by_a_natural_key():
    found = by_key(["b", "a", "b"])
    assert {key: list(rows) for key, rows in found.items()} == {"a": [1], "b": [0, 2]}


def test_what_cannot_be_dealt_is_refused():
    for deal in (lambda: iid(3, 4, source()), lambda: shards(LABELS[:3], 2, 2, source())):
        with pytest.raises(Misuse, match="cannot be dealt"):
            deal()
    with pytest.raises(Misuse, match="positive"):
        dirichlet(LABELS, 3, 0.0, source())


def panel(**changes):
    fields = {
        "title": "A & B",
        "counts": np.array([[4, 0], [1, 100]]),
        "sites": ["north", "<south>"],
        "labels": ["0", "1"],
    }
    return Panel(**(fields | changes))


def test_a_picture_has_a_bubble_for_whatever_a_site_holds_by_area():
    tree = ElementTree.fromstring(drawn([panel(), panel(counts=np.zeros((2, 2), np.int64))]))
    name = "{http://www.w3.org/2000/svg}"
    circles = tree.findall(f".//{name}circle")
    told = {circle.find(f"{name}title").text: float(circle.get("r")) for circle in circles}
    assert set(told) == {"north, 0: 4 rows", "<south>, 0: 1 rows", "<south>, 1: 100 rows"}
    largest = told["<south>, 1: 100 rows"]
    assert told["north, 0: 4 rows"] == pytest.approx(largest / 5, abs=0.01)
    assert "A & B" in {text.text for text in tree.findall(f".//{name}text")}


@pytest.mark.parametrize(
    "changes", [{"sites": ["one"]}, {"labels": []}, {"counts": np.array([[1, -1], [0, 0]])}]
)
def test_a_picture_of_other_shapes_is_misuse(changes):
    with pytest.raises(Misuse):
        panel(**changes)
