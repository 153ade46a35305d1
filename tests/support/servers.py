"""Real PostgreSQL, Redis and Prefect servers on free loopback ports, for tests and their drivers.

Each is a process that ends with the one that started it, can be killed and started again on its
port and folder, and comes from Debian's packages. Where those are missing a test is skipped by
name, and fails with ``FEDFLOW_CI=1``. Start them from the main thread: the kernel ties a process to
the *thread* that made it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import is_alive

from fedflow.orchestration.local_server import LocalPrefectServer, free_port

HOST = "127.0.0.1"
START_SECONDS = 60.0
_POSTGRES_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/local/lib/postgresql/*/bin")


def binary(name: str, package: str) -> str:
    """Where ``name`` is; skips the test, or fails it with FEDFLOW_CI=1, when it is nowhere."""
    found = shutil.which(name)
    for pattern in () if found else _POSTGRES_FOLDERS:
        for folder in sorted(Path("/").glob(pattern[1:])):
            found = shutil.which(name, path=str(folder)) or found
    if found is None:
        why = f"{name} is not installed (Debian's package {package})"
        if os.environ.get("FEDFLOW_CI") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return found


class Served:
    """A server process that can be killed, and started again where it was."""

    name = "server"
    end = signal.SIGTERM  # what asks it to end in good order

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / f"{self.name}.log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return self.process.pid if self.process is not None else None

    def command(self) -> list[str]:
        raise NotImplementedError

    def user(self) -> str | None:
        """Who runs it, when not the caller."""
        return None

    def ready(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((HOST, self.port)) == 0

    def start(self, timeout: float = START_SECONDS) -> None:
        """Start and wait until it answers. A port lost to somebody else in between is no matter:
        it tries until ``timeout``.
        """
        assert self.process is None, f"{self.name} was already started"
        deadline = time.monotonic() + timeout
        while True:
            self._spawn()
            while self.process is not None and self.process.poll() is None:
                if self.ready():
                    return
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            self.kill()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not come up:\n{self.tail()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """``kill -9``, of all its processes. Safe to call twice."""
        process, self.process = self.process, None
        if process is not None:
            family = [process.pid, *_descendants(process.pid)]
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            _until(lambda: not any(is_alive(pid) for pid in family), 10)

    def restart(self) -> None:
        """Start again on the same port and folder; killed first if it still runs."""
        self.kill()
        self.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End it in good order, or else at once. Safe to call twice."""
        if self.process is not None:
            self.process.send_signal(self.end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
            self.kill()

    def tail(self) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-4000:]
        return ""

    def _spawn(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                tied(self.command()),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **as_user(self.user()),
            )

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Postgres(Served):
    """PostgreSQL with one superuser, ``postgres``, and a password made for this server.

    It refuses to run as root, so root's server belongs to the user ``postgres`` (or ``nobody``)
    and has its data in a folder of its own under the temporary folder. Without ``durable`` a
    commit does not wait for the disk: what was committed last may be gone after :meth:`kill`.
    """

    name = "postgres"
    end = signal.SIGINT  # its "fast" shutdown; SIGTERM would wait for clients

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.durable = durable
        self._postgres, self._initdb, self._psql = (
            binary(name, "postgresql") for name in ("postgres", "initdb", "psql")
        )
        super().__init__(folder)
        self.password = secrets.token_hex(16)
        self.home = self.folder / "postgres"
        if self.user():
            self.home = Path(tempfile.mkdtemp(prefix="fedflow-postgres-"))
        self.data = self.home / "data"
        self._init()

    def user(self) -> str | None:
        if os.getuid() != 0:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in known else "nobody"

    @property
    def url(self) -> str:
        """``postgresql://…`` of the database ``postgres``."""
        return self.database_url("postgres")

    @property
    def asyncpg_url(self) -> str:
        """The same as SQLAlchemy and Prefect want it."""
        return self.url.replace("postgresql://", "postgresql+asyncpg://", 1)

    def database_url(self, name: str) -> str:
        return f"postgresql://postgres:{self.password}@{HOST}:{self.port}/{name}"

    def create_database(self, name: str) -> str:
        """Make another database; its ``postgresql://`` URL."""
        self.query(f'create database "{name}"')
        return self.database_url(name)

    def query(self, sql: str, database: str = "postgres") -> str:
        """What psql prints for one statement: rows on lines, columns divided by ``|``."""
        command = [self._psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
        command += ["-h", HOST, "-p", str(self.port), "-U", "postgres", database]
        environment = {**os.environ, "PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "10"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return done.stdout.strip()

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._postgres, "-D", str(self.data), *options]

    def ready(self) -> bool:
        try:
            return self.query("select 1") == "1"
        except RuntimeError:
            return False

    def stop(self, timeout: float = 10.0) -> None:
        super().stop(timeout)
        shutil.rmtree(self.home, ignore_errors=True)

    def _init(self) -> None:
        self.home.mkdir(exist_ok=True, mode=0o700)
        word = self.home / "password"
        word.write_text(self.password)
        if user := self.user():
            for path in (self.home, word):
                shutil.chown(path, user)
        command = [self._initdb, "-D", str(self.data), "-U", "postgres", "--no-sync"]
        command += ["-A", "scram-sha-256", f"--pwfile={word}", "-E", "UTF8", "--locale=C"]
        done = subprocess.run(
            command, cwd="/", capture_output=True, text=True, check=False, **as_user(user)
        )
        word.unlink()
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}\n{done.stderr}")


class RedisServer(Served):
    """Redis with a password. With ``durable`` every command is on the disk before its answer."""

    name = "redis"

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.durable = durable
        self._binary = binary("redis-server", "redis-server")
        super().__init__(folder)
        self.password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        return f"redis://default:{self.password}@{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        settings = self.folder / "redis.conf"
        keep = 'appendonly yes\nappendfsync always\nsave ""' if self.durable else 'save ""'
        settings.write_text(
            f"bind {HOST}\nport {self.port}\ndir {self.folder}\nrequirepass {self.password}\n"
            f"daemonize no\n{keep}\n"
        )
        settings.chmod(0o600)
        return [self._binary, str(settings)]

    def ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1) as link:
            link.settimeout(1)
            link.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (part := link.recv(200)):
                answer += part
            return answer == b"+OK\r\n+PONG\r\n"  # not while it still loads its file
        return False


class PrefectOnPostgres(LocalPrefectServer):
    """The Prefect server of :func:`prefect_on_postgres` and what is under it."""

    def __init__(
        self, home: Path, postgres: Postgres, redis: RedisServer | None, port: int | None = None
    ) -> None:
        super().__init__(
            home, port, database=postgres.asyncpg_url, redis=redis.url if redis else None
        )
        self.postgres, self.redis = postgres, redis


@contextlib.contextmanager
def postgres(folder: Path, *, durable: bool = False) -> Iterator[Postgres]:
    """A PostgreSQL: ``url``, ``create_database``, ``query``, ``kill``, ``restart`` and more.

    ``durable``: a commit that was answered survives ``kill``.
    """
    server = Postgres(folder, durable=durable)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def redis(folder: Path, *, durable: bool = False) -> Iterator[RedisServer]:
    """A Redis: ``url``, ``kill``, ``restart``."""
    with RedisServer(folder, durable=durable) as server:
        yield server


@contextlib.contextmanager
def prefect_on_postgres(
    folder: Path, redis: bool = True, *, durable: bool = False, port: int | None = None
) -> Iterator[PrefectOnPostgres]:
    """A Prefect server with all its services, on a PostgreSQL and a Redis of its own.

    ``.postgres`` and ``.redis`` are those; each of the three can be killed and restarted alone.
    """
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(postgres(folder / "postgres", durable=durable))
        broker = _redis(folder / "redis", durable=durable) if redis else None
        if broker is not None:
            stack.enter_context(broker)
        server = PrefectOnPostgres(folder / "prefect", database, broker, port)
        yield stack.enter_context(server)


_redis = RedisServer  # inside the function above, ``redis`` is its argument


def as_user(name: str | None) -> dict[str, object]:
    """How Popen starts something as ``name``, without the caller's groups."""
    if name is None:
        return {}
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


def tied(command: list[str]) -> list[str]:
    """``command``, ended by the kernel when whoever starts it ends (Linux only)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "QUIT", "--", *command] if setpriv else command


def _descendants(pid: int) -> list[int]:
    """Children of children: PostgreSQL gives each of its processes a group of its own."""
    children = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (task / "children").read_text().split()]
    return children + [deeper for child in children for deeper in _descendants(child)]


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
