"""A hostile server before a real site: agent, policy and ledger as they are, training a stand-in.

Whatever session it asks for, nothing is charged without a signed order of the job's coordinator.
And when a site fails, in any way, nothing of why leaves it but a code and a fixed sentence.
"""

from __future__ import annotations

import asyncio
import contextlib

import crowd
import pytest
from orchestration_room import serve_run, start_run

from fedflow.site.training_client import TrainingFailed

pytestmark = pytest.mark.usefixtures("connected")

LABEL = crowd.label(0)
EPSILON = 8.0
FEW = {"deadlines__round_seconds": 20.0, "deadlines__leg_seconds": 8.0}


@contextlib.asynccontextmanager
async def running(folder, monkeypatch, sites):
    """Agents of ``sites``; the first waits for its worker, the others follow the exchange."""
    path = crowd.site_folder(folder, LABEL)
    monkeypatch.setenv("FEDFLOW_SITE_SOCKET", str(path / "agent.sock"))
    folders = [crowd.site_folder(folder, crowd.label(n)) for n in range(sites)]
    agents = [crowd.CrowdAgent(each, n) for n, each in enumerate(folders)]
    tasks = [
        asyncio.create_task(agent.run(without_prefect=n > 0)) for n, agent in enumerate(agents)
    ]
    try:
        async with asyncio.timeout(20):
            while not (path / "agent.sock").exists():
                await asyncio.sleep(0.02)
        yield agents
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def session(job, **changes):
    return {"job": crowd.JOB, "manifest": job.digest.hex()} | changes


PRIVATE = "row 7 of /data/visits.csv: patient 42 earns 70000"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TrainingFailed("training-failed", PRIVATE), "site error: training-failed"),
        (ValueError(PRIVATE), "site error: internal"),
        (MemoryError(PRIVATE), "site error: internal"),
        (OSError(5, PRIVATE, "/data/visits.csv"), None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_site_that_fails_tells_a_code(tmp_path, evil, monkeypatch, error, message):
    _, job = crowd.make_crowd(tmp_path, 3, **FEW)
    async with running(tmp_path, monkeypatch, 1) as agents:

        async def fail(task, **_):
            raise error

        agents[0]._trainer.run = fail
        state = await serve_run(LABEL, await start_run(LABEL, session(job)), evil.api_url)
        assert not [e for e in agents[0]._ledger.entries() if e.kind == "reserve"]
    assert state.is_failed()
    assert message is None or state.message == message
    nothing_private(evil, tmp_path, state)


def nothing_private(evil, folder, state):
    assert len(state.message or "") <= 700
    for text in ("patient", "visits.csv", "70000", "row 7", str(folder), "Traceback", "agent.sock"):
        assert not evil.received(text), text


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("noise_multiplier_min", "9.0"), "policy"),
        (("epsilon", "0.01"), "budget"),
    ],
    ids=["policy", "budget"],
)
async def test_a_site_that_may_not_says_which_rule(tmp_path, evil, monkeypatch, change, code):
    _, job = crowd.make_crowd(tmp_path, 3, **FEW)
    path = crowd.site_folder(tmp_path, LABEL) / "policy.toml"
    field, value = change
    lines = path.read_text().splitlines()
    found = [n for n, line in enumerate(lines) if line.split("=")[0].strip() == field]
    assert found, path.read_text()
    for number in found:
        lines[number] = f"{field} = {value}"
    path.write_text("\n".join(lines) + "\n")
    async with running(tmp_path, monkeypatch, 1) as agents:
        state = await serve_run(LABEL, await start_run(LABEL, session(job)), evil.api_url)
        assert not [e for e in agents[0]._ledger.entries() if e.kind == "reserve"]
    assert state.name == "Refused"
    assert code in state.message
    nothing_private(evil, tmp_path, state)


async def test_a_session_of_another_manifest_is_refused(tmp_path, evil, monkeypatch):
    _, job = crowd.make_crowd(tmp_path, 3, **FEW)
    async with running(tmp_path, monkeypatch, 1) as agents:
        wrong = session(job, manifest="ab" * 32)
        state = await serve_run(LABEL, await start_run(LABEL, wrong), evil.api_url)
        assert not [e for e in agents[0]._ledger.entries() if e.kind == "reserve"]
    assert state.name == "Refused"
    nothing_private(evil, tmp_path, state)
