"""Runs commands in a Python that cannot import what a role's extra does not bring."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SITE = {"torch", "opacus"}
WORKER = {"prefect"}
PLOTS = {"plotly"}
RELAY = {"fastapi", "uvicorn", "asyncpg", "starlette"}
STORES = {"s3fs", "redis", "prefect_redis", "prefect_dask", "dask", "distributed"}
TOOLS = {"pytest", "hypothesis", "moto", "sklearn", "mypy", "mkdocs"}
ALL = SITE | WORKER | PLOTS | RELAY | STORES | TOOLS

_RUNNER = """
import contextlib, io, json, sys
blocked, commands = json.loads(sys.argv[1])
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from fedflow.cli import main
answers = []
for command in commands:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["fedflow", *command]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
    answers.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


def environment():
    """Nothing of the person who runs the tests, and lines that do not wrap."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "FEDFLOW_"))}
    return kept | {"COLUMNS": "400", "NO_COLOR": "1"}


def without(packages, *commands):
    """(status, standard output, standard error) of each command where ``packages`` are missing."""
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, json.dumps([sorted(packages), commands])],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(answer) for answer in json.loads(done.stdout)]


def imports_without(packages, *modules):
    """Import ``modules`` where ``packages`` are missing; the process's standard error, if any."""
    code = _RUNNER.partition("from fedflow")[0] + "import importlib\n"
    code += "for name in commands: importlib.import_module(name)\n"
    return subprocess.run(
        [sys.executable, "-c", code, json.dumps([sorted(packages), modules])],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    ).stderr


def module_without(packages, module, *arguments):
    """(status, output, error) of ``python -m module`` where ``packages`` are missing."""
    code = _RUNNER.partition("from fedflow")[0] + "import runpy\n"
    # what ``python -m`` does: argv[0] is "-m" until the module is found
    code += "sys.argv = ['-m', *commands[1:]]\n"
    code += "runpy._run_module_as_main(commands[0])\n"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([sorted(packages), [module, *arguments]])],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout, done.stderr
