"""A short run of the chaos driver, and what it would say of records that are broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
SCRIPT = HERE / "chaos.py"
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Fifteen kills: folder and SQLite, all processes; the folder it worked in."""
    folder = tmp_path_factory.mktemp("chaos") / "run"
    command = [sys.executable, str(SCRIPT), "--kills", "15", "--exchange", "folder"]
    command += ["--server", "sqlite", "--rounds", "6", "--every", "0.8", "--keep", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ), check=False, timeout=850
    )
    return folder, done


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifteen_kills_are_survived(run):
    folder, done = run
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    lines = [json.loads(line) for line in (folder / "chaos.jsonl").read_text().splitlines()]
    kills = [line for line in lines if line["event"] == "kill"]
    assert len(kills) >= 15
    assert {"agent", "coordinator"} <= {line["kind"] for line in kills}
    assert lines[-1]["faults"] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_checks_find_what_is_broken(run):
    """Each of these, done to a copy of nothing else, must be told: the checks can fail."""
    from chaos_checks import Findings, JobCheck, check_price, read_ledger
    from chaos_world import World, chaos_plan

    folder, _ = run
    world = World.load(folder, chaos_plan(6, 3.0))
    job = world.job("chaos-0001")

    def wrong():
        findings = Findings()
        ledgers = {label: read_ledger(world, label, findings) for label in world.labels}
        for paid in ledgers.values():
            check_price(paid, findings)
        check = JobCheck(world, world.stored(), job, findings)
        check.run(ledgers)
        return " ".join(findings.wrong), check, ledgers

    said, check, ledgers = wrong()
    assert said == ""

    # A vector that was not what the site masked.
    sequence = max(check.transcripts)
    site = check.survivors[sequence][0]
    path = world.witness(job.labels[site]) / check.contexts[sequence].hex()
    kept = path.read_bytes()
    words = np.frombuffer(kept, "<u4").copy()
    words[0] += 1
    path.write_bytes(words.tobytes())
    assert "is not that of its survivors' vectors" in wrong()[0]
    path.write_bytes(kept)

    # A release that no ledger paid for, and a price that is too low.
    label = world.labels[0]
    paid = ledgers[label]
    context = next(c for c, e in paid.reserved.items() if e.manifest == job.digest)
    entry = paid.reserved.pop(context)
    check._check_releases(label, paid)
    check_price(paid, check.findings)
    assert any("its ledger never paid for" in s for s in check.findings.wrong)
    paid.reserved[context] = entry

    # A second vector for one cohort.
    (path.parent / (path.name + ".again")).write_bytes(kept)
    assert "masked two vectors for one cohort" in wrong()[0]
    (path.parent / (path.name + ".again")).unlink()
    assert wrong()[0] == ""
