import shutil

import pytest
from federation_walk import Walk


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch):
    """Keys of these tests have none, whatever the environment says."""
    for name in ("FEDFLOW_KEY_PASSPHRASE", "FEDFLOW_KEY_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def walk(tmp_path, monkeypatch, capsys):
    """Commands over an empty folder."""
    return Walk(tmp_path, monkeypatch, capsys)


_FOUNDED = []


@pytest.fixture
def trial(tmp_path_factory, tmp_path, monkeypatch, capsys):
    """A federation with a coordinator and four sites, all joined: a copy of one that was made."""
    if not _FOUNDED:
        made = Walk(tmp_path_factory.mktemp("founded"), monkeypatch, capsys)
        made.found("alpha", "beta", "delta", "gamma")
        _FOUNDED.append(made.folder)
    folder = tmp_path / "trial"
    shutil.copytree(_FOUNDED[0], folder)
    return Walk(folder, monkeypatch, capsys)
