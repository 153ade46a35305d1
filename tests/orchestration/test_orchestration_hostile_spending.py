"""A hostile server before a real site: agent, policy and ledger as they are, training a stand-in.

It opens sessions without end, many at once, of other manifests, cancels and reopens them. What must
hold: the ledger has exactly what was released upon signed orders, and never more than the policy.
And when a site fails, in any way, nothing of why leaves it but a fixed sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid

import crowd
import pytest
from job_room import drive
from orchestration_room import serve_run, start_run, until_final, worker_at

from fedflow.coordinator.runner import JobRunner
from fedflow.coordinator.settings import open_coordinator
from fedflow.exchange import layout
from fedflow.orchestration import worker as worker_module
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


class Hostile:
    """What the server makes of the honest answers to one worker."""

    def __init__(self, job):
        self.job = job
        self.polls = self.looks = 0
        self.calm = False

    def __call__(self, method, path, answer):
        if path.endswith("get_scheduled_flow_runs"):
            return self.scheduled(answer)
        if method == "GET" and path.startswith("/flow_runs/") and isinstance(answer, dict):
            self.looks += 1
            if not self.calm and self.looks % 5 == 0 and answer.get("state"):
                answer["state"] |= {"type": "CANCELLING", "name": "Cancelling"}
        return answer

    def scheduled(self, answer):
        """The run that is there, again and again, and others like it that no site should take."""
        self.template = answer[0] if answer else getattr(self, "template", None)
        if self.template is None or self.calm:
            return answer
        self.polls += 1
        wanted = [session(self.job)] * 3
        wanted.append(session(self.job, manifest="ab" * 32))
        wanted.append(session(self.job, job="another"))
        out = []
        for parameters in wanted[self.polls % 3 :]:
            run = self.template["flow_run"] | {"id": str(uuid.uuid4()), "parameters": parameters}
            out.append(self.template | {"flow_run": run})
        return [*answer, *out]

    def respond(self, method, path):
        """Runs that do not exist are as good as any."""
        if path.endswith("set_state") and not self.calm:
            state = {"type": "RUNNING", "name": "Running", "timestamp": "2026-01-01T00:00:00Z"}
            body = {"status": "ACCEPT", "details": {"type": "accept_details"}, "state": state}
            return 200, {}, json.dumps(body).encode()
        return None


@pytest.mark.slow
async def test_sessions_without_end_cost_what_was_ordered(tmp_path, evil, monkeypatch):
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(worker_module, "REPORT_SECONDS", 0.0)
    coordinator, job = crowd.make_crowd(tmp_path, 4, epsilon=EPSILON, **FEW)
    hostile = Hostile(job)
    await start_run(LABEL, session(job))
    evil.mutate, evil.respond = hostile, hostile.respond
    async with (
        running(tmp_path, monkeypatch, 4) as agents,
        worker_at(LABEL, evil.api_url) as worker,
    ):

        async def pester():
            while True:
                with contextlib.suppress(Exception):
                    await worker.get_and_submit_flow_runs()
                await asyncio.sleep(0.05)

        pestering = asyncio.create_task(pester())
        with contextlib.suppress(Exception):  # it may well fail: that is the server's to do
            async with asyncio.timeout(120):
                await drive(JobRunner(open_coordinator(coordinator), crowd.JOB))
        async with asyncio.timeout(60):  # and goes on when the job is over
            while hostile.polls < 8:
                await asyncio.sleep(0.05)
        pestering.cancel()
        await asyncio.gather(pestering, return_exceptions=True)
        hostile.calm = True
        ledger = agents[0]._ledger
        orders = open_coordinator(coordinator).exchange.list(layout.rounds(crowd.JOB))
        charges = [entry for entry in ledger.entries() if entry.kind == "reserve"]
        assert charges or hostile.looks
        assert len(charges) <= len(orders)
        assert len({entry.context for entry in charges}) == len(charges)
        assert {entry.manifest for entry in charges} <= {job.digest}
        assert {entry.job for entry in charges} <= {crowd.JOB}
        released = crowd.given(tmp_path, LABEL)
        assert len(charges) <= len(released) or not charges
        for account in ledger.accounts():
            status = ledger.account_status(account)
            assert status.epsilon_spent <= status.epsilon_budget <= EPSILON
        before = len(ledger.entries())
        # after its end, as often as one likes: nothing more
        for _ in range(3):
            run = await start_run(LABEL, session(job))
            evil.respond = lambda *_: None
            await worker.get_and_submit_flow_runs()
            await until_final(run, 30)
        assert len(ledger.entries()) == before


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
