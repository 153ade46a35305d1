"""Start a site's Prefect worker as a process that holds nothing worth taking."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# what a Python process needs to run and find its files, and no more
_KEEP = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "SSL_CERT_FILE")


def worker_command(label: str) -> list[str]:
    """The command of the worker that serves work pool ``label``. ``--type`` is not optional:
    without it Prefect starts whatever worker the server names, and may install it first.
    """
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "fedflow"]
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
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "",
    }
