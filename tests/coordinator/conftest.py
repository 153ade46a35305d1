"""Jobs in one process: the room is shared with the site's tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "site"))

from job_room import Room


@pytest.fixture
async def room(tmp_path):
    made = Room(tmp_path)
    yield made
    await made.stop()
