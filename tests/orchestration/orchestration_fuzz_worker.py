"""A site's worker that lives on mutated answers, and tells what its process did meanwhile.

``python orchestration_fuzz_worker.py LABEL TURNS``: says "ready" after it served one honest run,
waits for a line, takes TURNS turns, says what it did as JSON, waits for a line, serves again.
With ``--unscrubbed`` nothing is taken out of an answer: what the audit must find.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import sysconfig
import uuid

import anyio
import httpx
from prefect.exceptions import ObjectNotFound

from fedflow.orchestration import scrub
from fedflow.orchestration import worker as module
from fedflow.orchestration.session_run import left_open

MARK = "canary"  # is in every name a mutated answer brings
NEVER = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "pickle.find_class",
    "ctypes.dlopen",
    "os.chmod",
    "os.symlink",
    "shutil.rmtree",
    "socket.bind",
    "webbrowser.open",
)
ALLOWED_SETTINGS = (b"PREFECT__WORKER_NAME", b"PREFECT__WORKER_ID")
READABLE = tuple(
    os.path.realpath(path)
    for path in (
        *sysconfig.get_paths().values(),
        sys.prefix,
        sys.base_prefix,
        os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
        os.environ["PREFECT_HOME"],
        "/usr/share/zoneinfo",
        "/etc/localtime",
        "/etc/hosts",
        "/proc/self",
        "/dev/null",
    )
)

armed = False
done: list[str] = []


def forbidden(event: str, args: tuple) -> bool:
    """Whether an audit event is something that no answer may make this process do."""
    if event in NEVER:
        return True
    if event == "import":
        return MARK in str(args) or args[0] in ("this", "antigravity", "turtle")
    if event in ("compile", "exec"):
        return MARK in repr(args)
    if event == "open" and isinstance(args[0], str | bytes):
        path = os.path.realpath(os.fsdecode(args[0]))
        writes = bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        own = path.startswith(os.path.realpath(os.environ["PREFECT_HOME"]))
        return not path.startswith(READABLE) or (writes and not own and "__pycache__" not in path)
    if event == "socket.connect":
        own_socket = os.environ["FEDFLOW_SITE_SOCKET"]
        return args[1] != TARGET and args[1] not in (own_socket, own_socket.encode())
    if event == "socket.getaddrinfo":
        return args[0] not in ("127.0.0.1", b"127.0.0.1")
    if event in ("os.putenv", "os.unsetenv"):
        return args[0] not in ALLOWED_SETTINGS
    if event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir"):
        return not os.fsdecode(args[0]).startswith(READABLE)
    return False


def note(event: str, args: tuple) -> None:
    """The audit hook."""
    if armed and forbidden(event, args):
        done.append(f"{event} {args!r}"[:400])


def target() -> tuple[str, int]:
    url = httpx.URL(os.environ["PREFECT_API_URL"])
    return url.host, url.port or 80


async def idle(worker: module.FedflowWorker, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        while worker._submitting_flow_run_ids or worker.limiter.borrowed_tokens:
            await asyncio.sleep(0.01)


async def main(label: str, turns: int) -> None:
    global armed
    module.POLL_SECONDS, module.ADOPT_SECONDS = 0.05, 0.2
    module.PROPOSE_SECONDS, module.REPORT_SECONDS = 1.0, 0.0
    module.RECONNECT_SECONDS = 1.0
    real, module.anyio.sleep = anyio.sleep, lambda seconds: real(min(seconds, 0.2))
    said: dict[str, int] = {}
    escaped: set[str] = set()
    async with module.FedflowWorker(work_pool_name=label, name=label) as worker:
        await worker.get_and_submit_flow_runs()
        await worker.client.read_flow_runs(limit=1)
        await idle(worker, 30)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        armed = True
        for _ in range(turns):
            for name, act in (
                ("sync", worker.sync_with_backend),
                ("poll", worker.get_and_submit_flow_runs),
                ("read", lambda: worker.client.read_flow_run(uuid.uuid4())),
                ("left", lambda: left_open(worker.client, label, worker._begun, 16)),
            ):
                try:
                    with anyio.fail_after(10):
                        await act()
                except Exception as exc:
                    said[type(exc).__name__] = said.get(type(exc).__name__, 0) + 1
                    if name in ("sync", "poll") and not isinstance(
                        exc,
                        # a pool that is gone ends the worker, and its unit starts it again
                        httpx.TransportError
                        | httpx.HTTPStatusError
                        | module.Refusal
                        | ObjectNotFound,
                    ):
                        escaped.add(f"{name}: {type(exc).__name__}: {exc}")
            await idle(worker, 3)
        armed = False
        worker.__dict__["_followed"].clear()
        report = {"done": done[:20], "said": said, "escaped": sorted(escaped)}
        print(json.dumps(report), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await idle(worker, 30)
        await worker.sync_with_backend()
        await worker.get_and_submit_flow_runs()
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    TARGET = target()
    sys.addaudithook(note)
    if "--unscrubbed" in sys.argv:
        scrub.install = lambda client: None
    else:
        scrub.everywhere()
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
