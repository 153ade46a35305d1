"""A federation in one process."""

import pytest
from job_room import Room


@pytest.fixture
async def room(tmp_path):
    made = Room(tmp_path)
    yield made
    await made.stop()
