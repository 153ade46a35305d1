"""The shipped deployments, deployed for real by ``prefect deploy`` without a question."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from flow_room import coordinator_folder
from job_room import JOB, Room
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import temporary_settings
from servers import tied
from typer.testing import CliRunner

from fedflow.cli.main import app
from fedflow.crypto.identity import Identity
from fedflow.errors import Refusal
from fedflow.exchange import open_exchange
from fedflow.orchestration import deploying
from fedflow.orchestration.deploying import POOL, make_pool
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.wire.messages import JobEnd
from fedflow.wire.sealed import seal
from flows.scheduled import open_jobs

FILE = Path(__file__).parents[2] / "flows" / "prefect.yaml"
EXPECTED = {
    "federated_training/training",
    "evaluation/evaluation",
    "next_job/nightly",
    "next_job/hourly",
    "next_job/on-publish",
    "budget_audit/budget-audit",
    "analytics/analytics",
    "preprocessing/preprocessing",
}


def deployments():
    return yaml.safe_load(FILE.read_text())["deployments"]


@pytest.mark.parametrize("name", [d["name"] for d in deployments()])
def test_every_entry_point_is_a_flow_of_the_package_and_nothing_is_fetched(name):
    (found,) = [d for d in deployments() if d["name"] == name]
    flow = load_flow_from_entrypoint(found["entrypoint"], use_placeholder_flow=False)
    assert f"{flow.name}/{name}" in EXPECTED
    assert flow.persist_result is False, "a result would be written where the server says"
    assert "pull" not in found
    assert all(not s["active"] for s in found.get("schedules", ())), "nothing runs unasked"
    assert yaml.safe_load(FILE.read_text())["pull"] == []


@pytest.mark.parametrize(
    ("arguments", "api", "why"),
    [
        (["status"], "", "PREFECT_API_URL"),
        (["status"], "http://127.0.0.1:9/api", "http://127.0.0.1:9/api"),
        (["automations", "--install", "--remove"], "", "choose one"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, api, why):
    with temporary_settings({"api.url": api or None}):
        result = CliRunner().invoke(app, ["prefect", *arguments])
    assert isinstance(result.exception, Refusal)
    assert why in str(result.exception)


@pytest.mark.slow
async def test_deploying_twice_and_the_next_job_runs_from_the_pool(connected, tmp_path):
    run = CliRunner().invoke
    for _ in range(2):  # in a thread: the command has a loop of its own
        result = await asyncio.to_thread(run, app, ["prefect", "deploy"])
        assert result.exit_code == 0, result.output + str(result.exception)
    async with scrubbed_client() as client:
        flows = {f.id: f.name for f in await client.read_flows()}
        found = {f"{flows[d.flow_id]}/{d.name}": d for d in await client.read_deployments()}
        ours = {name: d for name, d in found.items() if d.work_pool_name == POOL}
        automations = {a.name for a in await client.read_automations()}
    assert set(ours) == EXPECTED
    training = ours["federated_training/training"]
    assert "fedflow-resume" in training.tags
    assert training.global_concurrency_limit.limit == 1
    assert all(not d.pull_steps for d in ours.values())
    assert not any(s.active for d in ours.values() for s in d.schedules)
    assert {"on-publish__automation_1", "budget-audit__automation_1"} <= automations

    status = await asyncio.to_thread(run, app, ["prefect", "status"])
    assert status.exit_code == 0, status.output
    assert "next_job/nightly" in status.output

    # a job nobody coordinates yet, and one that has ended
    (tmp_path / "exchange").mkdir()
    room = Room(tmp_path, exchange=open_exchange(str(tmp_path / "exchange")))
    folder = coordinator_folder(room, tmp_path)
    with worker(connected, folder):
        first = await run_to_end(ours["next_job/nightly"].id)
        assert first.state.is_completed(), first.state
        assert JOB in first.state.message
        second = await run_to_end(ours["next_job/hourly"].id)
    await room.stop()
    assert second.state.name == "Nothing to do", "two schedules start one run"
    async with scrubbed_client() as client:
        tags = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"job:{JOB}", "fedflow-resume"]))
        started = await client.read_flow_runs(flow_run_filter=tags)
    assert len(started) == 1
    assert started[0].parameters["job"] == JOB
    assert {"fedflow-resume", "fedflow"} <= set(started[0].tags)


async def test_only_open_jobs_of_this_coordinator_are_next(tmp_path):
    (tmp_path / "exchange").mkdir()
    exchange = open_exchange(str(tmp_path / "exchange"))
    room = Room(tmp_path, exchange=exchange)
    exchange.put("jobs/not-a-job/manifest", b"junk")
    exchange.put("jobs/odd.name/manifest", b"junk")
    coordinator = room.folder_of_coordinator
    assert [job.id for job in open_jobs(coordinator)] == [JOB]
    stranger = replace(coordinator, identity=Identity.generate())
    assert open_jobs(stranger) == [], "another coordinator's job"
    ended = JobEnd(room.job.digest, 0, "completed", "done", room.manifest.initial_model)
    forged = seal(Identity.generate(), ended)
    coordinator.exchange.put(f"jobs/{JOB}/end", forged)
    assert [job.id for job in open_jobs(coordinator)] == [JOB], "anybody's bytes end nothing"
    await room.stop()


async def test_an_ended_job_is_not_next(tmp_path):
    room = Room(tmp_path)
    room.runner().close("completed", "done")
    assert open_jobs(room.folder_of_coordinator) == []
    await room.stop()


async def test_a_pool_of_another_type_is_refused(connected):
    async with scrubbed_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="other", type="docker"))
    deploying.POOL, before = "other", deploying.POOL
    try:
        with pytest.raises(Refusal, match="type 'docker'"):
            await make_pool()
    finally:
        deploying.POOL = before


@contextlib.contextmanager
def worker(server, folder):
    """The process worker of the coordinator's pool, as flows/prefect.yaml says to start it."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        **server.environment(),
        "FEDFLOW_COORDINATOR": str(folder),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
    command += ["--pool", POOL, "--limit", "4"]
    with open(folder / "worker.log", "wb") as log:
        process = subprocess.Popen(
            tied(command),
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, 15)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


async def run_to_end(deployment, parameters=None, seconds=180.0):
    deadline = time.monotonic() + seconds
    async with scrubbed_client() as client:
        made = await client.create_flow_run_from_deployment(deployment, parameters=parameters)
        while True:
            run = await client.read_flow_run(made.id)
            if run.state.is_final() or time.monotonic() > deadline:
                return run
            await asyncio.sleep(0.3)
