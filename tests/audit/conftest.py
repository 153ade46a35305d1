import pytest
from federation import Federation

from fedflow.wire.messages import Kind


@pytest.fixture(scope="session")
def honest(tmp_path_factory):
    """A finished job with a site that vanished, one that went silent, and an aborted attempt."""
    made = Federation(tmp_path_factory.mktemp("honest"))
    made.run(1)
    made.run(2, drop={3})
    made.run(2, Kind.EVALUATE)
    made.run(3, abort=True)
    made.run(3, attempt=2, silent={0})
    made.run(4)
    made.run(4, Kind.EVALUATE)
    made.finish()
    return made


@pytest.fixture
def folder(honest, tmp_path):
    """A copy of the honest job, to tamper with."""
    from federation import copy

    return copy(honest.folder, tmp_path / "job")


@pytest.fixture
def fresh(tmp_path):
    """A federation at its start, for parties that cheat while the job runs."""
    return Federation(tmp_path / "job")
