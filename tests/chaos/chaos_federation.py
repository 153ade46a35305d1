"""Which processes a chaos run keeps, and how each is started."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos_driver import answers
from chaos_units import Unit, prefect_unit, python_unit, served_unit
from chaos_world import World
from servers import Postgres, PrefectOnPostgres, RedisServer

from fedflow.orchestration.local_server import LocalPrefectServer, free_port
from fedflow.orchestration.worker_process import worker_command, worker_environment

HERE = Path(__file__).parent


@dataclass
class Federation:
    """The units, in the order in which they are started, and what ends with them."""

    units: list[Unit]
    server: LocalPrefectServer
    targets: list[str]
    ready: Callable[[], bool]
    close: Callable[[], None]
    database: Postgres | None = None


def build(world: World, *, server: str, job: Callable[[], str]) -> Federation:
    """Units over ``world``: a Prefect server on SQLite or PostgreSQL and Redis, and the rest.

    ``job`` names the job whose coordinator is started next.
    """
    units: list[Unit] = []
    database: Postgres | None = None
    home = world.folder / "prefect"
    if server == "postgres":
        database = Postgres(world.folder / "postgres", durable=True)
        broker = RedisServer(world.folder / "redis", durable=True)
        units += [served_unit("postgres", "postgres", database)]
        units += [served_unit("redis", "redis", broker)]
        prefect: LocalPrefectServer = PrefectOnPostgres(home, database, broker, free_port())
    else:
        prefect = LocalPrefectServer(home, free_port())
    prefect._port = prefect._wanted_port
    for folder in (home, home / "client"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    units.append(prefect_unit(prefect))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    clean["PYTHONPATH"] = str(HERE.parents[1])  # the witness is a script: its folder comes first
    if relay := "://" in world.url:
        port = world.url.rpartition(":")[2]
        arguments = ["-m", "fedflow.cli.main", "exchange", "serve", str(world.store)]
        arguments += ["--authority", world.authority.public.hex(), "--port", port]
        arguments += ["--roster", str(world.write_members())]
        units.append(python_unit("relay", "relay", arguments, clean, world.logs("relay")))
    for label in world.labels:
        script = [str(HERE / "chaos_witness.py"), str(world.witness(label))]
        arguments = [*script, "site", "start", str(world.site(label))]
        units.append(python_unit(label, "agent", arguments, clean, world.logs(label)))
    for label in world.labels:
        workers = home / "workers" / label
        workers.mkdir(parents=True, exist_ok=True)
        environment = worker_environment(prefect.environment(), world.socket(label), workers)
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "3"
        name = f"{label}-worker"
        arguments = worker_command(label)[1:]
        units.append(python_unit(name, "worker", arguments, environment, world.logs(name)))
    units.append(_coordinator(world, prefect, job))
    targets = list(dict.fromkeys(["trainer", *(unit.kind for unit in units)]))

    def ready() -> bool:
        return (
            answers(f"{prefect.api_url}/health")
            and (not relay or answers(f"{world.url}/readyz"))
            and all(world.socket(label).exists() for label in world.labels)
        )

    def close() -> None:
        if database is not None:
            database.process = None
            database.stop()  # removes its data folder

    return Federation(units, prefect, targets, ready, close, database)


def _coordinator(world: World, server: LocalPrefectServer, job: Callable[[], str]) -> Unit:
    environment = dict(os.environ | server.environment())

    def spawn() -> object:
        arguments = ["-m", "flows.training", job(), "--coordinator", str(world.coordinator)]
        log = world.logs("coordinator")
        return python_unit("coordinator", "coordinator", arguments, environment, log).spawn()

    return Unit("coordinator", "coordinator", spawn, wanted=False)
