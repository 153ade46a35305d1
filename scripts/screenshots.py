"""Takes the pictures of Prefect's UI that the documentation shows: docs/img/ui-*.png.

    python scripts/screenshots.py [--out docs/img] [--keep]

A real Prefect server, a federation of four sites on this machine with made-up rows, its job run by
``python -m flows.training``, and Chromium without a window. Half-way one site's budget ends, so
that a refusal is among what one sees.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fedflow.coordinator.job import create_job  # noqa: E402
from fedflow.coordinator.settings import init_coordinator, open_coordinator  # noqa: E402
from fedflow.crypto.identity import Identity  # noqa: E402
from fedflow.demo.processes import Processes  # noqa: E402
from fedflow.errors import FedflowError, Refusal  # noqa: E402
from fedflow.learning.first_model import first_model  # noqa: E402
from fedflow.learning.plan import Plan, load_plan  # noqa: E402
from fedflow.learning.trivial import DATA_FILE, write_site  # noqa: E402
from fedflow.orchestration.local_server import LocalPrefectServer  # noqa: E402
from fedflow.orchestration.worker_process import (  # noqa: E402
    worker_command,
    worker_environment,
)
from fedflow.site.config import init_site  # noqa: E402
from fedflow.site.policy import template  # noqa: E402

JOB = "visits-7"
SITES = ("berlin", "lyon", "oslo", "porto")
#: The site whose budget is small, and that budget: enough for about half of the rounds.
THRIFTY, SMALL, LARGE = "porto", 0.15, 10.0
#: The site that the third round waits for, while its picture is taken.
SLOW = "oslo"
#: Of each site: a score of fewer would be all noise.
ROWS = 4000
MOST_BYTES = 200_000
#: What a loaded machine may take for the whole job, and for one picture.
JOB_SECONDS, PICTURE_SECONDS = 300.0, 120.0
#: Milliseconds of the page's own clock before the picture: requests and animations are over.
SETTLE = 8_000


@dataclass(frozen=True)
class Picture:
    """One page: the file's name after ``ui-``, its path in the UI, the window."""

    name: str
    path: str
    width: int = 1280
    height: int = 800


def find_chromium() -> str | None:
    """The browser's command; None when there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def take(browser: str, url: str, target: Path, width: int = 1280, height: int = 800) -> None:
    """Write what a browser shows at ``url`` to ``target``, a PNG of ``width`` by ``height``.

    Refusal ``picture`` when there is none in the end.
    """
    with tempfile.TemporaryDirectory(prefix="fedflow-browser-") as profile:
        made = Path(profile) / "picture.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={profile}/profile", f"--window-size={width},{height}"]
        command += [f"--virtual-time-budget={SETTLE}", f"--screenshot={made}", url]
        with open(Path(profile) / "log", "w+b") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            try:
                process.wait(PICTURE_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            finally:
                end_group(process)
            log.seek(0)
            said = log.read()[-500:].decode(errors="replace")
        if not made.exists():
            raise Refusal("picture", f"no picture of {url}: {said}")
        shutil.move(made, target)


class Held(Processes):
    """Processes that can be made to wait."""

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Within it the process and its children do nothing."""
        group = self._running[name].pid
        os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(group, signal.SIGCONT)


class Federation:
    """A coordinator, four sites and their workers, in one folder, as processes of their own."""

    def __init__(self, folder: Path, server: LocalPrefectServer) -> None:
        self.folder, self.server = folder, server
        self.processes = Held(folder / "logs")

    def build(self, plan: Plan) -> None:
        """Keys, folders, policies and the signed job."""
        authority = Identity.generate()
        url = str(self.folder / "exchange")
        coordinator = init_coordinator(
            self.folder / "coordinator", exchange=url, authority=authority.public
        )
        keys = {}
        for label in SITES:
            policy = template(
                authority=authority.public.hex(),
                coordinators=[coordinator.public.hex()],
                workload=plan.plan.workload,
                dataset=plan.plan.workload,
                path=DATA_FILE,
                epsilon=SMALL if label == THRIFTY else LARGE,
                delta=plan.privacy.delta,
                plan=plan,
            )
            path = self.folder / label
            identity = init_site(
                path, label=label, exchange=url, socket="agent.sock", policy=policy
            )
            write_site(path / DATA_FILE, label, ROWS)
            keys[label] = identity.public
        first = first_model(plan)
        exchange = open_coordinator(self.folder / "coordinator").exchange
        create_job(
            exchange,
            job=JOB,
            plan=plan,
            sites=keys,
            coordinator=coordinator.public,
            authority=authority,
            initial_model=first.file,
            spec=first.spec,
            reference_persons=first.reference_persons,
        )

    def start_sites(self) -> None:
        """Agents and workers."""
        for label in SITES:
            own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
            agent = ["-m", "fedflow.cli.main", "site", "start", str(self.folder / label)]
            self.processes.start(label, agent, own)
            home = self.folder / "homes" / label
            home.mkdir(parents=True)
            worker = worker_environment(
                self.server.environment(), self.folder / label / "agent.sock", home
            )
            worker["PREFECT_WORKER_QUERY_SECONDS"] = "2"
            self.processes.start(f"{label}-worker", worker_command(label)[1:], worker)

    def start_flow(self) -> None:
        """What coordinates the job."""
        flow = ["-m", "flows.training", JOB, "--coordinator", str(self.folder / "coordinator")]
        self.processes.start("coordinator", flow, self.environment())

    def environment(self) -> dict[str, str]:
        """Of a command of the coordinator."""
        return os.environ | self.server.environment() | {"PYTHONPATH": str(ROOT)}

    def command(self, *arguments: str) -> None:
        """Run a ``fedflow`` command to its end; Refusal with what it said when it failed."""
        done = subprocess.run(
            [sys.executable, "-m", "fedflow.cli.main", *arguments],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=JOB_SECONDS,
        )
        if done.returncode:
            raise Refusal("command", f"fedflow {' '.join(arguments)}: {done.stderr[-500:]}")

    def records(self) -> int:
        """How many rounds are done."""
        path = open_coordinator(self.folder / "coordinator").events_path(JOB)
        return path.read_text().count('"round-done"') if path.exists() else 0


class Api:
    """The few questions the pictures need answered, of the server's own API."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, wanted: dict[str, Any] | None = None) -> Any:
        """What ``POST path`` answers; None for what does not exist."""
        request = urllib.request.Request(  # noqa: S310
            f"{self._url}/{path}",
            data=json.dumps(wanted or {}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None

    def run(self, state: str | None = None, name: str | None = None) -> dict[str, Any] | None:
        """The newest flow run of this state's or run's name."""
        for run in self.ask("flow_runs/filter", {"sort": "START_TIME_DESC"}):
            if state in (None, run["state_name"]) and (name is None or name in run["name"]):
                return dict(run)
        return None

    def waiting(self, run: str, words: str) -> bool:
        """Whether of this run's tasks that are named so, one runs and others have ended."""
        wanted = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"name": {"like_": words}}}
        found = {task["state_type"] for task in self.ask("task_runs/filter", wanted)}
        return found >= {"RUNNING", "COMPLETED"}

    def artifact(self, key: str) -> str:
        """The id of the newest artifact of this key."""
        wanted = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
        return str(self.ask("artifacts/filter", wanted)[0]["id"])


def wait_for(what: str, ready: Callable[[], Any], federation: Federation) -> Any:
    """What ``ready`` gives once it gives something; Refusal when it takes too long."""
    until = time.monotonic() + JOB_SECONDS
    while not (found := ready()):
        running = [*SITES, *(f"{label}-worker" for label in SITES)]
        federation.processes.require_alive(running)
        if time.monotonic() > until:
            raise Refusal("slow", f"{what}: not within {JOB_SECONDS:.0f} s")
        time.sleep(0.2)
    return found


def small_plan() -> Plan:
    """The trivial plan with six rounds, each second one scored."""
    raw = load_plan(ROOT / "flows" / "plans" / "trivial.toml").model_dump()
    raw["plan"] |= {"rounds": 6}
    raw["strategy"] |= {"server_learning_rate": 0.05}
    # more than a picture takes: a held site must not be given up
    raw["deadlines"] |= {"round_seconds": 240, "leg_seconds": 240}
    raw["evaluation"] |= {"every": 2, "bins": 20, "noise_multiplier": 40.0}
    return Plan.model_validate(raw)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def newest_events() -> str:
    """The query of fedflow's own events of the last minutes: the feed leaves out the newest."""
    now = datetime.now(UTC)
    wanted = {
        "events": json.dumps(["fedflow.*"]),
        "rangeType": "range",
        "start": (now - timedelta(minutes=10)).isoformat(),
        "end": (now + timedelta(minutes=1)).isoformat(),
    }
    return urllib.parse.urlencode(wanted)


def shoot(federation: Federation, picture: Callable[[Picture], None]) -> None:
    """Run the job and take every picture at its moment."""
    api = Api(federation.server.api_url)
    federation.start_sites()
    for label in SITES:
        online = partial(api.ask, f"work_pools/{label}/workers/filter")
        wait_for(f"the worker of {label}", online, federation)
    federation.start_flow()
    wait_for("the third round", lambda: federation.records() >= 2, federation)
    run = wait_for("the run", lambda: api.run(name="federated training"), federation)
    page = f"v2/runs/flow-run/{run['id']}"
    with federation.processes.held(SLOW):
        waiting = partial(api.waiting, run["id"], "· round 3")
        wait_for("the third round's wait", waiting, federation)
        picture(Picture("running", page))
    wait_for("the end", lambda: federation.processes.code("coordinator") is not None, federation)
    federation.processes.require_success("coordinator")
    refused = wait_for("the refused session", lambda: api.run(state="Refused"), federation)
    picture(Picture("finished", f"{page}?tab=TaskRuns", height=960))
    picture(Picture("refused", f"v2/runs/flow-run/{refused['id']}?tab=Details"))
    for table, width, height in (("rounds", 1600, 640), ("summary", 1280, 1470)):
        shown = api.artifact(f"{JOB}-{table}")
        picture(Picture(table, f"v2/artifacts/artifact/{shown}", width, height))
    picture(Picture("events", f"v2/events?{newest_events()}", height=1000))
    federation.command("prefect", "deploy")
    picture(Picture("deployments", "v2/deployments", height=880))
    federation.command("prefect", "automations", "--install")
    picture(Picture("automations", "v2/automations", height=730))


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(
        prog="scripts/screenshots.py",
        description="Take the pictures of Prefect's UI in docs/img, of a real job.",
        epilog="Example: python scripts/screenshots.py --out /tmp/pictures --keep",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img", help="where to")
    parser.add_argument(
        "--keep", action="store_true", help="leave the server open until Ctrl-C, to look around"
    )
    options = parser.parse_args()
    browser = find_chromium()
    if browser is None:
        print("fedflow: taking pictures needs Chromium, and there is none here", file=sys.stderr)
        raise SystemExit(2)
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started ends with it

    def picture(wanted: Picture) -> None:
        target = options.out / f"ui-{wanted.name}.png"
        take(browser, f"{server.ui_url}/{wanted.path}", target, wanted.width, wanted.height)
        size = target.stat().st_size
        print(f"{target}: {size / 1000:.0f} kB" + (", too large" if size > MOST_BYTES else ""))

    # short: the kernel counts every byte of a socket's path
    with tempfile.TemporaryDirectory(prefix="ff-") as name, contextlib.ExitStack() as stack:
        server = LocalPrefectServer(Path(name) / "prefect")
        federation = Federation(Path(name), server)
        stack.callback(server.stop)
        stack.callback(federation.processes.stop)
        try:
            federation.build(small_plan())
            server.start()
            shoot(federation, picture)
            if options.keep:
                print(f"{server.ui_url} stays open; Ctrl-C ends it", flush=True)
                threading.Event().wait()
        except FedflowError as error:
            print(f"fedflow: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("fedflow: interrupted; everything it started has ended", file=sys.stderr)
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
