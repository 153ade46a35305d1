"""What Prefect shows of a site's part in a round."""

import pytest

from fedflow.coordinator.inbox import SiteAnswer
from fedflow.orchestration.tasks import state_of


@pytest.mark.parametrize(
    ("answer", "name", "failed", "message"),
    [
        (SiteAnswer("masked", seconds=1.25), "Completed", False, "masked update after 1.2 s"),
        # A site of an asynchronous round that still trains has lost nothing.
        (SiteAnswer("resting", "busy", "still training"), "Resting", False, "still training"),
        (SiteAnswer("refused", "budget", "spent"), "Refused", True, "budget: spent"),
        (SiteAnswer("dropped", "absent", "not present"), "Dropped", True, "not present"),
    ],
)
def test_a_site_that_rests_has_not_failed(answer, name, failed, message):
    state = state_of(answer)
    assert (state.name, state.is_failed(), state.message) == (name, failed, message)
