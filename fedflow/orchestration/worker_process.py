"""Start a site's Prefect worker as a process that holds nothing worth taking.

``python -m fedflow.orchestration.worker_process LABEL`` becomes the worker of a site, for service
managers and containers: PREFECT_API_URL, PREFECT_HOME and FEDFLOW_SITE_SOCKET say where, and
credentials may be files (PREFECT_API_AUTH_STRING_FILE), which this reads.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from fedflow.errors import InputError
from fedflow.settings_file import read_text

# what a Python process needs to run and find its files, and no more
_KEEP = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "SSL_CERT_FILE")


def worker_command(label: str) -> list[str]:
    """The command of the worker that serves work pool ``label``. ``--type`` is not optional:
    without it Prefect starts whatever worker the server names, and may install it first.
    """
    command = [sys.executable, "-m", "fedflow.orchestration.scrubbed", "worker", "start"]
    command += ["--type", "fedflow"]
    return [*command, "--pool", label, "--name", label, "--install-policy", "never"]


def worker_environment(server: Mapping[str, str], socket: Path | str, home: Path) -> dict[str, str]:
    """A clean environment for :func:`worker_command`, none of it inherited but ``_KEEP``.

    ``server`` is how to reach Prefect (:meth:`LocalPrefectServer.environment`, or PREFECT_API_URL
    and its credentials), ``socket`` the site daemon's, ``home`` a folder for Prefect's own files.
    """
    return {
        **{name: os.environ[name] for name in _KEEP if name in os.environ},
        **server,
        "PREFECT_HOME": str(home),
        "FEDFLOW_SITE_SOCKET": str(socket),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_ENABLE_CANCELLATION": "false",
        # asks with a client that nothing bounds
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "",
    }


#: How to reach a Prefect server, and what proves to it who asks.
_SERVER = ("PREFECT_API_URL", "PREFECT_API_SSL_CERT_FILE")
_CREDENTIALS = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_CLIENT_CUSTOM_HEADERS")


def _server_from_environment() -> dict[str, str]:
    """The caller's own settings of the server; InputError for a credential that cannot be read."""
    found = {name: os.environ[name] for name in _SERVER + _CREDENTIALS if os.environ.get(name)}
    for name in _CREDENTIALS:
        if path := os.environ.get(f"{name}_FILE"):
            found[name] = read_text(path).strip()
    return found


def _wanted(name: str) -> str:
    if not (value := os.environ.get(name)):
        raise InputError("is not set", where="environment", field=name)
    return value


def main(arguments: list[str] | None = None) -> None:
    """Become the worker, in a clean environment."""
    parser = argparse.ArgumentParser(
        prog="python -m fedflow.orchestration.worker_process",
        description="Run a site's Prefect worker: no data, no keys, a clean environment.",
        epilog="example: FEDFLOW_SITE_SOCKET=/run/fedflow-site/agent.sock PREFECT_API_URL=... "
        "python -m fedflow.orchestration.worker_process berlin",
    )
    parser.add_argument("label", help="the site's label, which is its work pool's name")
    parser.add_argument("--health", action="store_true", help="answer /health at 127.0.0.1:8080")
    options = parser.parse_args(arguments)
    try:
        _wanted("PREFECT_API_URL")
        home = Path(_wanted("PREFECT_HOME"))
        socket = _wanted("FEDFLOW_SITE_SOCKET")
        environment = worker_environment(_server_from_environment(), socket, home)
    except InputError as error:
        sys.exit(f"fedflow: refused: {error}")
    command = worker_command(options.label)
    if options.health:
        command.append("--with-healthcheck")
        port = os.environ.get("PREFECT_WORKER_WEBSERVER_PORT", "8080")
        environment["PREFECT_WORKER_WEBSERVER_PORT"] = port
    os.execve(sys.executable, command, environment)  # noqa: S606


if __name__ == "__main__":
    main()
