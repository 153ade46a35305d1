"""Builds the demo's federation on disk: keys, six sites with their own rows, one signed job."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedflow.coordinator.job import Job, create_job, load_job, write_roster
from fedflow.coordinator.settings import CoordinatorFolder, init_coordinator, open_coordinator
from fedflow.crypto.identity import Identity
from fedflow.errors import InputError
from fedflow.learning.first_model import first_model
from fedflow.learning.plan import Plan
from fedflow.learning.randhie import deal_persons, partition_sites, vendored_table
from fedflow.site.config import init_site
from fedflow.site.policy import template
from fedflow.site.socket_protocol import MAX_PATH

DATASET = "randhie"
DATA_FILE = "visits.csv"


@dataclass(frozen=True)
class World:
    """Where everything of one demo is."""

    folder: Path
    sockets: Path
    coordinator: CoordinatorFolder
    job: Job
    labels: list[str]

    def site(self, label: str) -> Path:
        """A site's folder."""
        return self.folder / "sites" / label

    def socket(self, label: str) -> Path:
        """A site agent's socket."""
        return self.sockets / f"{label}.sock"

    def data(self, label: str) -> Path:
        """A site's data file."""
        return self.site(label) / DATA_FILE

    @property
    def report(self) -> Path:
        """Where the HTML report goes."""
        return self.folder / "report.html"

    def close(self) -> None:
        """Remove the sockets: an agent that had to be killed leaves its own.

        With their folder, where that is outside because the world's path was too long.
        """
        for socket in self.sockets.glob("*.sock"):
            socket.unlink(missing_ok=True)
        if self.sockets.parent != self.folder:
            shutil.rmtree(self.sockets, ignore_errors=True)


def build_world(
    folder: Path, plan: Plan, job: str, epsilon: float, sites: int | None = None
) -> World:
    """Make the federation in ``folder``, which must be new or empty.

    ``epsilon`` is the budget every site's policy grants its data set. The sites are the six of the
    experiment or, with ``sites``, so many, among whom its persons are dealt.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            "is not empty; choose a new folder or remove it", where=str(folder), field="--folder"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = folder.resolve()
    exchange = folder / "exchange"
    sockets = _socket_folder(folder)
    authority = Identity.generate()
    (folder / "authority").mkdir(mode=0o700)
    authority.save(folder / "authority" / "identity.pem")
    coordinator = init_coordinator(
        folder / "coordinator", exchange=str(exchange), authority=authority.public
    )
    table, keys = vendored_table(), {}
    parts = partition_sites(table) if sites is None else deal_persons(table, sites)
    for number, rows in parts.items():
        label = f"site-{number}"
        path = folder / "sites" / label
        policy = template(
            authority=authority.public.hex(),
            coordinators=[coordinator.public.hex()],
            workload=plan.plan.workload,
            dataset=DATASET,
            path=DATA_FILE,
            epsilon=epsilon,
            delta=plan.privacy.delta,
            plan=plan,
        )
        identity = init_site(
            path,
            label=label,
            exchange=str(exchange),
            socket=os.path.relpath(sockets / f"{label}.sock", path)
            if sockets.parent == folder
            else str(sockets / f"{label}.sock"),
            policy=policy,
        )
        (path / DATA_FILE).write_bytes(rows)
        (path / DATA_FILE).chmod(0o600)
        keys[label] = identity.public
    first = first_model(plan)
    opened = open_coordinator(folder / "coordinator")
    create_job(
        opened.exchange,
        job=job,
        plan=plan,
        sites=keys,
        coordinator=coordinator.public,
        authority=authority,
        initial_model=first.file,
        spec=first.spec,
        reference_persons=first.reference_persons,
    )
    loaded = load_job(opened.exchange, job, authority.public)
    write_roster(folder / "audit" / "roster.json", loaded, authority.public)
    (folder / "plan.json").write_text(json.dumps(json.loads(plan.canonical()), indent=2))
    return World(folder, sockets, opened, loaded, sorted(keys))


def _socket_folder(folder: Path) -> Path:
    """A place for sockets whose paths are short enough for the kernel."""
    inside = folder / "sockets"
    if len(os.fsencode(inside / "site-6.sock")) <= MAX_PATH:
        inside.mkdir(mode=0o700)
        return inside
    return Path(tempfile.mkdtemp(prefix="fedflow-"))
