"""The hostile Prefect server, and the hostile user of an honest one.

Each attack runs against a real server, most through a proxy that rewrites its answers. What must
hold: nothing executes, nothing is imported or unpickled, nothing of the site leaves, the daemon is
never asked, and where there is a run left to answer, it is ``Refused`` with the reason.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import uuid

import httpx
import pytest
from orchestration_room import MANIFEST, serve_run, start_run, until_final, worker_at
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError

from fedflow.errors import Refusal
from fedflow.orchestration.registration import SESSION_FLOW, register_site
from fedflow.orchestration.scrub import scrubbed_client

pytestmark = pytest.mark.usefixtures("connected")

SECRET = "9f3c-site-db-password"


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("SITE_SECRET", SECRET)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module whose import is noticed, and a file whose existence is."""
    name = f"canary_{uuid.uuid4().hex}"
    touched = tmp_path / "touched"
    text = f"open({str(touched)!r}, 'w')\ndef dumps(o): ...\ndef loads(b): ...\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name, touched
    sys.modules.pop(name, None)


def refused(state, code):
    assert (state.type.value, state.name) == ("FAILED", "Refused"), state
    assert state.message.startswith(code)


def poisoned(module):
    """State data as a server may send it: a pickle serialiser of a module it names, and a block."""
    payload = base64.b64encode(b"cos\nsystem\n(S'true'\ntR.").decode()
    return {
        "type": "reference",
        "storage_key": f"data://;base64,{payload}",
        "storage_block_id": str(uuid.uuid4()),
        "serializer": {"type": "pickle", "picklelib": module},
        "prefect_version": "3.8.8",
    }


def test_the_attack_on_states_is_real(canary):
    """Without the scrubber, parsing this state imports the module: the tests below can fail."""
    module, touched = canary
    State.model_validate({"type": "COMPLETED", "data": poisoned(module)})
    assert touched.exists()


# --- an API user of an honest server -----------------------------------------------------------


@pytest.mark.parametrize(
    "variables", [{"command": "touch /tmp/x"}, {"env": {"LD_PRELOAD": "/tmp/x.so"}}, {"image": "x"}]
)
async def test_the_api_itself_answers_422_to_job_variables(label, variables):
    with pytest.raises(PrefectHTTPStatusError) as caught:
        await start_run(label, job_variables=variables)
    assert caught.value.response.status_code in (409, 422)


@pytest.mark.parametrize(
    "parameters",
    [
        {"job": "trial", "manifest": MANIFEST, "command": "id"},
        {"job": "trial"},
        {"job": "../../etc/passwd", "manifest": MANIFEST},
        {"job": "trial\n", "manifest": MANIFEST},
        {"job": "{{ $SITE_SECRET }}", "manifest": MANIFEST},
        {"job": {"$ref": {"block_document_id": str(uuid.uuid4())}}, "manifest": MANIFEST},
        {"job": ["trial"], "manifest": MANIFEST},
        {"job": "trial", "manifest": MANIFEST[:-1]},
        {"job": "trial", "manifest": "x" * 400_000},
        {str(n): "x" * 100 for n in range(3000)},
        {},
    ],
    ids=range(11),
)
async def test_parameters_outside_the_schema(label, daemon, evil, parameters):
    """The honest API refuses most of these; a lying one sends them anyway."""

    def push(method, path, answer):
        if path.endswith("get_scheduled_flow_runs"):
            for entry in answer:
                entry["flow_run"]["parameters"] = parameters
        return answer

    evil.mutate = push
    state = await serve_run(label, await start_run(label), evil.api_url)
    refused(state, "bad-parameters")
    assert len(state.message) < 300
    assert daemon.requests == []
    assert not evil.received(SECRET)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (
            {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "SCRIPT"}}]},
            "pull steps",
        ),
        ({"entrypoint": "canary.py:flow"}, "an entry point"),
        ({"path": "/tmp"}, "a path"),
    ],
)
async def test_a_deployment_that_carries_code(label, daemon, canary, extra, word):
    _, touched = canary
    await register_site(label)
    if "pull_steps" in extra:
        step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {touched}"}}
        extra = {"pull_steps": [step]}
    async with scrubbed_client() as client:
        flow_id = await client.create_flow_from_name(SESSION_FLOW)
        deployment = await client.create_deployment(
            flow_id, name=f"{label}-evil", work_pool_name=label, **extra
        )
        run = await client.create_flow_run_from_deployment(
            deployment, parameters={"job": "trial", "manifest": MANIFEST}
        )
    state = await serve_run(label, run.id)
    refused(state, "pushed-configuration")
    assert word in state.message
    assert daemon.requests == []
    assert not touched.exists()


# --- a server that lies ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pushed",
    [
        {"job_variables": {"command": "touch TOUCHED"}},
        {"job_variables": {"env": {"PYTHONPATH": "/tmp", "LD_PRELOAD": "/tmp/x.so"}}},
        {"infrastructure_document_id": str(uuid.uuid4())},
    ],
)
@pytest.mark.parametrize("place", ["run", "deployment"])
async def test_pushed_configuration(label, daemon, evil, canary, pushed, place):
    _, touched = canary

    def push(method, path, answer):
        if place == "run" and path.endswith("get_scheduled_flow_runs"):
            for entry in answer:
                entry["flow_run"].update(pushed)
        if place == "deployment" and method == "GET" and path.startswith("/deployments/"):
            answer.update(pushed)
        return answer

    evil.mutate = push
    state = await serve_run(label, await start_run(label), evil.api_url)
    refused(state, "pushed-configuration")
    assert daemon.requests == []
    assert not touched.exists()


@pytest.mark.parametrize(
    "template",
    [
        {"name": "{{ prefect.variables.leak_{{ $SITE_SECRET }} }}"},
        {"env": {"X": "{{ $SITE_SECRET }}"}, "command": "id"},
        {"name": "{{ prefect.blocks.secret.{{ $SITE_SECRET }} }}"},
    ],
)
async def test_template_nesting_leaks_nothing(label, daemon, evil, template):
    def push(method, path, answer):
        if method == "GET" and path == f"/work_pools/{label}":
            answer["base_job_template"]["job_configuration"] = template
        return answer

    evil.mutate = push
    state = await serve_run(label, await start_run(label), evil.api_url)
    refused(state, "pushed-configuration")
    assert "a changed job template" in state.message
    assert not evil.received(SECRET)
    asked = [path for _, path, _ in evil.seen]
    assert not any("variables" in path or "block" in path for path in asked)
    assert daemon.requests == []


@pytest.mark.parametrize("where", ["get_scheduled_flow_runs", "set_state", "flow_runs"])
async def test_no_state_makes_the_worker_import(label, daemon, evil, canary, where):
    """Poisoned data in the poll, in the answer to a state, and in the run that is read later."""
    module, touched = canary

    def push(method, path, answer):
        if where == "get_scheduled_flow_runs" and path.endswith(where):
            for entry in answer:
                entry["flow_run"]["state"] = {"type": "SCHEDULED", "data": poisoned(module)}
        if where == "set_state" and path.endswith(where):
            answer["state"]["data"] = poisoned(module)
        if where == "flow_runs" and method == "GET" and path.startswith("/flow_runs/"):
            answer["state"]["data"] = poisoned(module)
        return answer

    evil.mutate = push
    run_id = await start_run(label)
    async with worker_at(label, evil.api_url) as worker:
        await worker.get_and_submit_flow_runs()
        await worker.client.read_flow_run(run_id)
        state = await until_final(run_id)
    assert state.is_completed()
    assert any(where in path for _, path, _ in evil.seen)
    assert module not in sys.modules
    assert not touched.exists()


@pytest.mark.parametrize("kind", ["COMPLETED", "PAUSED", "CRASHED"])
@pytest.mark.parametrize("moment", ["PENDING", "RUNNING"])
async def test_a_reject_with_a_result(label, daemon, evil, canary, kind, moment):
    """The stock engine unpickles the result of a state it is rejected with; the worker stops."""
    module, touched = canary
    proposed = {"PENDING": 0, "RUNNING": 1}[moment]
    count = 0

    def push(method, path, answer):
        nonlocal count
        if path.endswith("set_state"):
            count += 1
            if count > proposed:
                answer["status"] = "REJECT"
                answer["details"] = {"type": "reject_details", "reason": "already done"}
                answer["state"].update({"type": kind, "name": kind, "data": poisoned(module)})
        return answer

    evil.mutate = push
    await start_run(label)
    async with worker_at(label, evil.api_url) as worker:
        await worker.get_and_submit_flow_runs()
        await _idle(worker)
        assert count == proposed + 1
        evil.mutate = lambda method, path, answer: answer
        again = await start_run(label)  # and it still serves its site
        await worker.get_and_submit_flow_runs()
        assert (await until_final(again)).is_completed()
    assert len(daemon.sessions) == 1
    assert module not in sys.modules
    assert not touched.exists()
    assert not any("block" in path for _, path, _ in evil.seen)


async def test_an_answer_too_large_is_not_read(label, daemon, evil):
    def push(method, path, answer):
        if path.endswith("get_scheduled_flow_runs"):
            return b'{"x": "' + b"x" * 3_000_000 + b'"}'
        return answer

    evil.mutate = push
    run_id = await start_run(label)
    async with worker_at(label, evil.api_url) as worker:
        with pytest.raises(httpx.DecodingError, match="too large"):
            await worker.get_and_submit_flow_runs()
        evil.mutate = lambda method, path, answer: answer
        await worker.get_and_submit_flow_runs()
        assert (await until_final(run_id)).is_completed()


async def test_thousands_of_runs(label, daemon, evil):
    stop = asyncio.Event()
    running = 0

    async def hold(request, send):
        nonlocal running
        running += 1
        await stop.wait()
        await daemon.complete(request, send)

    def flood(method, path, answer):
        if path.endswith("get_scheduled_flow_runs") and answer:
            one = answer[0]
            copies = [
                {**one, "flow_run": {**one["flow_run"], "id": str(uuid.uuid4())}}
                for _ in range(500)
            ]
            return [one, *copies]
        return answer

    evil.mutate = flood
    daemon.answer = hold
    run_id = await start_run(label)
    async with worker_at(label, evil.api_url) as worker:
        for _ in range(3):
            await worker.get_and_submit_flow_runs()
        await asyncio.sleep(0.5)
        assert worker.limiter.borrowed_tokens <= 4
        stop.set()
        assert (await until_final(run_id)).is_completed()
    proposals = [path for _, path, _ in evil.seen if path.endswith("set_state")]
    assert len(proposals) <= 32
    assert running == 1


async def test_the_pool_changes_its_type(label, daemon, evil):
    """Discovering a type from the server is how a stock worker becomes a process worker."""

    def push(method, path, answer):
        if method == "GET" and path == f"/work_pools/{label}":
            answer["type"] = "process"
        return answer

    await register_site(label)
    evil.mutate = push
    with pytest.raises(Refusal, match="not of type"):
        async with worker_at(label, evil.api_url):
            pass


async def test_exception_texts_never_reach_the_api(label, daemon, evil, monkeypatch):
    from fedflow.orchestration.configuration import FedflowJobConfiguration

    async def broken(*args, **kwargs):
        raise ValueError(f"patient 42 {SECRET}")

    monkeypatch.setattr(FedflowJobConfiguration, "resolve_for_flow_run", broken)
    state = await serve_run(label, await start_run(label), evil.api_url)
    assert state.is_crashed()
    assert state.message == "the worker could not start this session"
    assert not evil.received(SECRET)
    assert not evil.received("patient")


async def test_a_session_uses_only_the_endpoints_a_proxy_allows(label, daemon, evil):
    """What ``deploy/`` lets through for one site. A new endpoint here needs a decision."""
    state = await serve_run(label, await start_run(label), evil.api_url)
    assert state.is_completed()
    names = {label: "POOL"}
    shapes = set()
    for method, path, _ in evil.seen:
        parts = [_shape(part, names) for part in path.split("?")[0].strip("/").split("/")]
        shapes.add(f"{method} {'/'.join(parts)}")
    assert shapes <= {
        "GET api/admin/version",
        "GET api/csrf-token",
        "GET api/work_pools/POOL",
        "GET api/deployments/ID",
        "GET api/flow_runs/ID",
        "GET api/events/out",
        "GET api/events/in",
        "POST api/work_pools/POOL/get_scheduled_flow_runs",
        "POST api/work_pools/POOL/workers/heartbeat",
        "POST api/flow_runs/ID/set_state",
        "POST api/flow_runs/filter",  # what a killed worker left; served all the same where denied
        "POST api/logs",
        "PATCH api/flow_runs/ID",
    }
    assert "POST api/work_pools/POOL/get_scheduled_flow_runs" in shapes


def _shape(part, names):
    if part in names:
        return names[part]
    try:
        uuid.UUID(part)
    except ValueError:
        return part
    return "ID"


async def _idle(worker):
    async with asyncio.timeout(15):
        while worker._submitting_flow_run_ids or worker.limiter.borrowed_tokens:
            await asyncio.sleep(0.05)
