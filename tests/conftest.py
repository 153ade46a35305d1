"""Fixtures more than one room needs."""

import pytest
from job_room import Room


@pytest.fixture
async def room(tmp_path):
    """A federation in one process."""
    made = Room(tmp_path)
    yield made
    await made.stop()
