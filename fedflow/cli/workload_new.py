"""``fedflow workload new``: a package to fill in, with rows nobody has lived."""

from __future__ import annotations

import hashlib
import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated

import typer
from rich.console import Console

from fedflow.errors import InputError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SITES, _PERSONS = 4, 150
#: Template -> where it goes.
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "readme.md": "README.md",
    "plan.toml": "plan.toml",
    "init.py": "$package/__init__.py",
    "workload.py": "$package/workload.py",
    "test.py": "tests/test_$package.py",
}


def new(
    name: Annotated[
        str, typer.Argument(help="Lower-case letters, digits, dashes: as plans will call it.")
    ],
    folder: Annotated[
        Path | None, typer.Option(help="Where it is written; must not exist. Default: ./NAME.")
    ] = None,
) -> None:
    """Write the package of a new workload: code, plan, made-up rows, a test, and what to do next.

    It runs as it is; see its README.md.
    """
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or len(name) > 63 or keyword.iskeyword(package):
        raise InputError(
            f"{name!r} cannot be used",
            field="NAME",
            allowed="lower-case letters and digits, words joined by dashes, no word of Python",
        )
    _check_unused(name)
    target = folder or Path(name)
    words = {"name": name, "package": package}
    files = {
        Template(path).substitute(words): Template(_text(source)).substitute(words).encode()
        for source, path in _FILES.items()
    }
    files |= {f"example/site-{i}.csv": example_rows(i) for i in range(1, _SITES + 1)}
    _write(target, files)
    console = Console()
    for path in files:
        console.print(f"wrote {target / path}", soft_wrap=True)
    console.print(f"now follow {target / 'README.md'}", soft_wrap=True)


def _text(source: str) -> str:
    return resources.files("fedflow").joinpath("template", f"{source}.txt").read_text("utf-8")


def _check_unused(name: str) -> None:
    from fedflow.learning.workload import installed_workloads

    if name in installed_workloads():
        raise InputError(f"a workload {name!r} is installed already; choose another", field="NAME")


def _write(target: Path, files: dict[str, bytes]) -> None:
    try:
        target.mkdir(parents=True)
        for path, content in files.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)
    except FileExistsError:
        raise InputError(
            "is here already; remove it or choose another --folder", where=str(target)
        ) from None
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(target)) from None


def example_rows(site: int) -> bytes:
    """CSV bytes of made-up persons of one to three rows; age and pressure make the label."""
    label = b"fedflow/1 template rows\0%d" % site
    drawn = iter(hashlib.shake_256(label).digest(16 * _PERSONS))
    lines = ["person,label,age,pressure"]
    for person in range(_PERSONS):
        age = 20 + next(drawn) % 60
        for _ in range(1 + next(drawn) % 3):
            pressure = 95 + next(drawn) % 60
            ill = (age - 50) / 30 + (pressure - 125) / 30 > 0
            wrong = next(drawn) < 16
            lines.append(f"s{site}-{person},{int(ill != wrong)},{age},{pressure}")
    return ("\n".join(lines) + "\n").encode()
