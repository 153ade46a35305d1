"""Hundreds of mutated answers, and an audit of all that the worker's process does meanwhile.

The answers are a real server's, recorded, with random members replaced, added and taken away by
what has ever made Prefect import, read, run or ask. Seeded: a failure comes back.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from orchestration_room import start_run, until_final

from fedflow.orchestration.worker_process import worker_environment
from fedflow.site.socket_protocol import SessionRequest

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.slow]

PROGRAM = Path(__file__).parent / "orchestration_fuzz_worker.py"
SECRET = "9f3c-site-db-password"
TURNS = 60

PICKLE = "data://;base64,Y29zCnN5c3RlbQooUyd0cnVlJwp0Ui4="
SERIALIZER = {"type": "pickle", "picklelib": "canary_module"}
REFERENCE = {"type": "reference", "storage_key": PICKLE, "serializer": SERIALIZER}
VALUES = [
    None,
    True,
    -1,
    0,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x" * 5000,
    "canary_module",
    "canary_module:function",
    "this",
    "antigravity",
    "prefect.deployments.steps.run_shell_script",
    "{{ $SITE_SECRET }}",
    "{{ prefect.variables.canary_{{ $SITE_SECRET }} }}",
    "{{ prefect.blocks.secret.canary }}",
    "../../../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/canary",
    "\x1b[2Jcanary\n\x00\u202e",
    "9999999999-99-99T99:99:99Z",
    "2026-01-01T00:00:00+99:99",
    "* * * * * canary",
    "RRULE:FREQ=SECONDLY;COUNT=999999999",
    "COMPLETED",
    "CANARY",
    "WAIT",
    "ABORT",
    "REJECT",
    [],
    {},
    [[[[[]]]]],
    ["canary"] * 500,
    SERIALIZER,
    REFERENCE,
    {"type": "compressed/pickle", "serializer": SERIALIZER, "compressionlib": "canary_module"},
    {"$ref": {"block_document_id": str(uuid.UUID(int=7))}},
    {"__prefect_kind": "jinja", "template": "{{ canary.__class__ }}"},
    {"__prefect_kind": "json", "value": '{"canary": 1}'},
    {"__prefect_kind": "workspace_variable", "variable_name": "canary"},
    {
        "prefect.deployments.steps.run_shell_script": {
            "script": "touch canary",
            "requires": "canary",
        }
    },
    {"block_type_slug": "canary", "block_schema_checksum": "sha256:00", "_block_type_slug": "c"},
    {"type": "wait_details", "delay_seconds": float("inf"), "reason": "canary"},
    {"type": "canary_module.Class", "__type__": "canary_module.Class", "py/object": "os.system"},
]
KEYS = [
    "data",
    "result",
    "serializer",
    "picklelib",
    "storage_block_id",
    "storage_document_id",
    "infrastructure_document_id",
    "infrastructure_pid",
    "job_variables",
    "pull_steps",
    "entrypoint",
    "path",
    "parameters",
    "parameter_openapi_schema",
    "schedules",
    "timezone",
    "state",
    "state_details",
    "details",
    "type",
    "status",
    "base_job_template",
    "storage_configuration",
    "bundle_execution_step",
    "env",
    "command",
    "labels",
    "tags",
    "name",
    "__class__",
    "__init__",
    "_block_type_slug",
    "block_type",
]


def places(value, path=()):
    """Every (container, key) below ``value``."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def mutated(rng, value):
    """A copy of ``value`` with up to four members replaced, added, renamed or gone."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        found = list(places(value))
        if not found or rng.random() < 0.02:
            return rng.choice(VALUES)
        container, key = rng.choice(found)
        new = copy.deepcopy(rng.choice(VALUES))
        what = rng.random()
        if isinstance(container, dict) and what < 0.3:
            container[rng.choice(KEYS)] = new
        elif what < 0.4:
            del container[key]
        elif isinstance(container, dict) and what < 0.5:
            container[rng.choice(KEYS)] = container.pop(key)
        else:
            container[key] = new
    return value


def shape(method, path):
    path = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", path.split("?")[0])
    return method, path.removeprefix("/api")


class Recorded:
    """What a real server said; and, from then on, what comes of it by ``rng``."""

    def __init__(self, rng):
        self.answers = {}
        self.rng = rng
        self.asked = 0

    def keep(self, method, path, answer):
        if answer:
            self.answers.setdefault(shape(method, path), []).append(answer)
        return answer

    def again(self, method, path):
        self.asked += 1
        known = self.answers.get(shape(method, path))
        if not known:
            return 404, {}, b'{"detail": "canary"}'
        answer = copy.deepcopy(self.rng.choice(known))
        if "get_scheduled_flow_runs" in path:
            for entry in answer:
                entry["flow_run"]["id"] = str(uuid.UUID(int=self.rng.getrandbits(128)))
        status = self.rng.choices([200, 307, 404, 409, 422, 500], [95, 1, 1, 1, 1, 1])[0]
        headers = {"location": "http://127.0.0.1:1/canary"} if status == 307 else {}
        headers |= {"retry-after": "1e9", "prefect-maintenance": "true"}
        return status, headers, json.dumps(self.changed(answer)).encode()

    def changed(self, answer):
        return mutated(self.rng, answer)


class Planted(Recorded):
    """The recorded answers with one thing in every state: a serializer whose module is imported."""

    def changed(self, answer):
        for container, key in list(places(answer)):
            if key == "state" and isinstance(container[key], dict):
                container[key]["data"] = REFERENCE | {"storage_block_id": str(uuid.UUID(int=7))}
        return answer


async def report_of(label, daemon, evil, folder, recorded, *options):
    """What a worker's process did while its server answered with what ``recorded`` makes.

    It must have served a run before, and must serve one afterwards.
    """
    evil.mutate = recorded.keep
    first = await start_run(label)
    settings = {"PREFECT_API_URL": evil.api_url}
    home = folder / "home"
    home.mkdir()
    environment = worker_environment(settings, daemon.path, home) | {"SITE_SECRET": SECRET}
    (folder / "canary_module.py").write_text("def dumps(o): ...\ndef loads(b): ...\n")
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
    with open(folder / "errors", "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), label, str(TURNS), *options],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )

    async def says():
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 240)
        assert line, (folder / "errors").read_text()[-3000:]
        return line

    def go():
        process.stdin.write("\n")
        process.stdin.flush()

    try:
        assert await says() == "ready\n"
        assert (await until_final(first)).is_completed()
        assert len(recorded.answers) >= 5
        evil.respond = recorded.again
        go()
        report = json.loads(await says())
        evil.respond, evil.mutate = (lambda *_: None), (lambda method, path, answer: answer)
        last = await start_run(label)
        go()
        assert (await until_final(last, 60)).is_completed()
        go()
        process.stdin.close()
        await asyncio.to_thread(process.wait, 60)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    return report


@pytest.mark.parametrize("seed", [1, 2])
async def test_mutated_answers(label, daemon, evil, tmp_path, seed):
    recorded = Recorded(random.Random(seed))
    report = await report_of(label, daemon, evil, tmp_path, recorded)
    assert report["done"] == []
    assert report["escaped"] == []
    assert recorded.asked > TURNS
    assert not evil.received(SECRET)
    assert not evil.received("root:x")
    assert all(isinstance(r, SessionRequest) or r.op in ("cancel",) for r in daemon.requests)
    asked = {path for _, path, _ in evil.seen}
    assert not any("block" in path or "variables" in path for path in asked)
    assert sorted(p.name for p in tmp_path.iterdir() if "canary" in p.name) == ["canary_module.py"]


@pytest.mark.parametrize("scrubbing", [True, False])
async def test_the_audit_sees_what_no_scrubber_kept_away(label, daemon, evil, tmp_path, scrubbing):
    """The tests above can fail: the same process without its scrubber is found out."""
    recorded = Planted(random.Random(3))
    options = () if scrubbing else ("--unscrubbed",)
    report = await report_of(label, daemon, evil, tmp_path, recorded, *options)
    found = [line for line in report["done"] if "canary_module.py" in line]
    assert bool(found) is not scrubbing, report
