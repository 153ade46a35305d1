"""What the learning figures rest on; the figures themselves are made by hand."""

import pytest

from benchmarks.learning.digits import rounds_to


@pytest.mark.parametrize(
    ("curve", "rounds"),
    [
        ([50.0, 90.0, 96.0, 98.0], 3.5),  # half-way between rounds 3 and 4
        ([50.0, 97.0], 2.0),
        ([98.0], 97.0 / 98.0),
        ([96.0, 90.0, 98.0], 2.5),  # a curve never goes down
        ([50.0, 96.9], None),
        ([], None),
    ],
)
def test_rounds_to_an_accuracy(curve, rounds):
    found = rounds_to(curve, 97.0)
    assert found == (rounds if rounds is None else pytest.approx(rounds))
