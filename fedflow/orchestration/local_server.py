"""A Prefect server of our own, on this machine, for the demo and the tests.

SQLite in a folder the caller names, or a PostgreSQL with or without Redis; a loopback port,
analytics off, nothing inherited from the user's own Prefect settings (their profile may point at
another server). It runs in a session of its own, so a Ctrl-C meant for us does not race it, and
:meth:`LocalPrefectServer.stop` ends all of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from fedflow.errors import Misuse, Refusal
from fedflow.tied import tied_command

Progress = Callable[[float], None]

_HOST = "127.0.0.1"
_TAIL_BYTES = 4000
_ATTEMPTS = 3  # a free port can be taken between finding and using it

# Everything the embedded server does besides answering, each a writer on the one SQLite file.
_IDLE_SERVICES = (
    "SCHEDULER",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "TRIGGERS",
    "EVENT_LOGGER",
)

# What a server keeps in its memory otherwise, where it is gone with the process.
_REDIS_MODULES = {
    "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
    "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
}
# Fifteen connections by default: with fifty workers asking at once requests would wait half a
# minute for one, and fail.
_CONNECTIONS = {
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "20",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW": "30",
}
# How many states of tasks it writes at a time: one by default, each in a transaction. Beside that,
# SQLite refuses nearly every request that reads for half a second before it writes, such as that
# for a new session. The interval is cut to whole seconds, and at zero the server would spin.
_BATCHES = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
# How many events its services read at a time: one by default, each with three questions to Redis,
# which falls minutes behind a job of fifty sites.
_REDIS_BATCHES = {
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "100",
}


class LocalPrefectServer:
    """One ``prefect server`` process group with its own home folder, logging to ``server.log``.

    ``database`` is a ``postgresql+asyncpg://`` URL; on it every service runs, schedules and
    automations included. ``redis``, a ``redis://`` URL, carries its events.
    """

    def __init__(
        self,
        home: Path,
        port: int | None = None,
        *,
        database: str | None = None,
        redis: str | None = None,
    ) -> None:
        if database is None and redis is not None:
            raise Misuse("messages go through Redis only beside a PostgreSQL database")
        self.home = Path(home)
        self._database, self._redis = database, redis
        self.log = self.home / "server.log"
        self._wanted_port = port
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The loopback port; Misuse before :meth:`start`."""
        if self._port is None:
            raise Misuse("the Prefect server has no port before start()")
        return self._port

    @property
    def api_url(self) -> str:
        """What clients put in PREFECT_API_URL."""
        return f"http://{_HOST}:{self.port}/api"

    @property
    def ui_url(self) -> str:
        """What a person opens in a browser."""
        return f"http://{_HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process id, which is also its process group, while it runs."""
        return self._process.pid if self._process is not None else None

    def environment(self) -> dict[str, str]:
        """Variables that point a child process at this server."""
        return {
            "PREFECT_HOME": str(self.home / "client"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_CLI_PROMPT": "false",
            "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
            **_QUIET,
        }

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Within it, Prefect in this process talks to this server, and so do its children.

        Changing ``os.environ`` alone is not enough: Prefect reads it once, when it is imported.
        """
        from prefect.settings import temporary_settings

        from fedflow.orchestration.delivery import drain_events

        wanted = self.environment()
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            with temporary_settings(
                {
                    "home": self.home / "client",
                    "api.url": self.api_url,
                    "api.key": None,
                    "server.ephemeral.enabled": False,
                    "server.analytics_enabled": False,
                    "results.persist_by_default": False,
                }
            ):
                try:
                    yield
                finally:
                    drain_events()
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def start(self, progress: Progress | None = None, timeout: float = 90.0) -> LocalPrefectServer:
        """Start and wait until the API answers; calls ``progress(seconds waited)`` meanwhile.

        Raises Refusal "prefect-server" with the end of the log when it does not come up.
        """
        if self._process is not None:
            raise Misuse("this Prefect server was already started")
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.home / "client").mkdir(exist_ok=True, mode=0o700)
        deadline = time.monotonic() + timeout
        for attempt in range(_ATTEMPTS):
            self._port = self._wanted_port or free_port()
            if _answers(f"http://{_HOST}:{self._port}/"):
                raise Refusal("prefect-server", f"port {self._port} is already in use")
            self._spawn()
            try:
                self._wait(deadline, progress)
                return self
            except BaseException as exc:
                tail = self._log_tail()
                self.stop()
                taken = "address already in use" in tail or "Errno 98" in tail
                if taken and self._wanted_port is None and attempt + 1 < _ATTEMPTS:
                    continue
                if isinstance(exc, TimeoutError | ChildProcessError):
                    raise Refusal(
                        "prefect-server",
                        f"the Prefect server did not come up: {exc}. Its log is {self.log}; it "
                        f"ends with:\n{tail}",
                    ) from None
                raise
        raise Refusal("prefect-server", "no free port for the Prefect server")

    def stop(self, timeout: float = 10.0) -> None:
        """End the server and everything it started. Safe to call at any time, and twice."""
        process = self._process
        if process is None:
            return
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
        self.kill()  # whatever it left behind

    def kill(self) -> None:
        """End it as ``kill -9`` does, everything it started included."""
        process, self._process = self._process, None
        if process is not None:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()

    def restart(self) -> LocalPrefectServer:
        """Start again at the same port, over the same database; what still runs is killed."""
        self.kill()
        self._wanted_port = self.port
        return self.start()

    def __enter__(self) -> LocalPrefectServer:
        return self if self._process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self) -> None:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
            **_QUIET,
            "PREFECT_HOME": str(self.home),
            "PREFECT_UI_API_URL": self.api_url,
            "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
            **_BATCHES,
            **self._storage(),
        }
        command = tied_command(["-m", "prefect", "server", "start"])
        command += ["--host", _HOST, "--port", str(self.port)]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _storage(self) -> dict[str, str]:
        """Settings for where the server keeps its state and sends its events."""
        if self._database is None:
            file = (self.home / "prefect.db").resolve()
            return {
                "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{file}",
                **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _IDLE_SERVICES},
            }
        wanted = {"PREFECT_API_DATABASE_CONNECTION_URL": self._database, **_CONNECTIONS}
        if self._redis is not None:
            wanted |= _REDIS_MODULES | _REDIS_BATCHES
            wanted |= {
                "PREFECT_REDIS_MESSAGING_URL": self._redis,
                "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": self._redis,  # has settings of its own
            }
        return wanted

    def _wait(self, deadline: float, progress: Progress | None) -> None:
        process = self._process
        if process is None:
            raise Misuse("the Prefect server was not started")
        began = time.monotonic()
        while not _answers(f"{self.api_url}/health"):
            if (code := process.poll()) is not None:
                raise ChildProcessError(f"it exited with status {code}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer after {time.monotonic() - began:.0f} s")
            if progress is not None:
                progress(time.monotonic() - began)
            time.sleep(0.1)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError), open(self.log, "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _TAIL_BYTES))
            return log.read().decode(errors="replace")
        return ""


_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",  # the client asks the server about analytics; a site decides for itself
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
}


def free_port() -> int:
    """A loopback port nobody listens at now. It can be taken before it is used."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(url: str) -> bool:
    # no proxy from the environment: this is loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
