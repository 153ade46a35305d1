"""What ``fedflow site status`` says of the agent's session."""

import pytest

from fedflow.cli.site import _step
from fedflow.site.socket_protocol import Status


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"round": 4, "phase": "training", "seconds": 75}, "round 4: training for 0:01:15"),
        (
            {"round": 4, "phase": "done", "seconds": 7200},
            "round 4 is done, waiting for 2:00:00 for the coordinator's next order",
        ),
        ({"seconds": 0}, "waiting for 0:00:00 for the coordinator's next order"),
    ],
)
def test_a_site_that_waits_says_for_whom_and_how_long(fields, said):
    assert _step(Status(site="oslo", job="trial", **fields)) == said
