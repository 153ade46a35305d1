"""The wheel, installed with the extra ``site`` into an empty environment, carries sites to the end.

No checkout is on the path of what runs here: another folder, and Python's isolated mode.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from deploy_federation import LABELS, Federation, Process

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1200)  # an installation on a busy machine


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with dist/ and venv/. pip takes the packages from where the person's own does."""
    work = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [ROOT / "scripts/check_wheel.sh", work, "site"],
        capture_output=True,
        text=True,
        timeout=1000,
        env=os.environ | {"PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    yield work
    shutil.rmtree(work, ignore_errors=True)  # over a GiB


def packages(work: Path) -> set[str]:
    listed = subprocess.run(
        [work / "venv/bin/pip", "list", "--format=freeze"], capture_output=True, text=True
    ).stdout
    return {line.partition("=")[0].lower() for line in listed.splitlines()}


@pytest.mark.slow
def test_the_wheel_has_what_is_needed_and_nothing_else(installed):
    (wheel,) = (installed / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {
        str(path.relative_to(installed / "source"))
        for room in ("fedflow", "flows")
        for path in (installed / "source" / room).rglob("*.py")
    }
    assert len(sources) > 150
    assert sources - set(names) == set(), "a module is not in the wheel"
    for path in [*(ROOT / "flows/plans").glob("*"), *(ROOT / "fedflow/data").glob("*")]:
        assert str(path.relative_to(ROOT)) in names
    assert "fedflow/py.typed" in names
    assert not [n for n in names if n.startswith(("tests", "benchmarks", "deploy", "docs"))]
    assert not [n for n in names if "__pycache__" in n or n.endswith((".pem", ".sqlite", ".log"))]


@pytest.mark.slow
def test_the_site_extra_has_no_server_and_no_plots(installed):
    here = packages(installed)
    assert {"fedflow", "torch", "opacus", "cryptography", "dp-accounting"} <= here
    absent = {"prefect", "fastapi", "uvicorn", "plotly", "asyncpg", "s3fs", "dask", "pandas"}
    assert not here & absent


@pytest.mark.slow
async def test_three_agents_from_the_wheel_train_a_job(installed, tmp_path):
    federation = Federation(tmp_path / "f")
    fedflow = str(installed / "venv/bin/fedflow")
    with ExitStack() as stack:
        for label in LABELS:
            command = [fedflow, "site", "start", str(federation.site(label)), "--no-prefect"]
            stack.enter_context(Process(command, tmp_path / f"{label}.log", cwd=tmp_path))
        runner = await federation.train()
    assert runner.next_round == 3
    for label in LABELS:
        assert federation.charges(label) == 3  # two rounds, and the evaluation of the last
        status = subprocess.run(
            [fedflow, "site", "status", federation.site(label), "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert status.returncode == 0, status.stderr
        assert '"rows/train"' in status.stdout
