"""``fedflow workload``: workloads to try fedflow with, and how to make one of your own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedflow.cli.workload_new import new
from fedflow.cli.workload_try import attempt, check
from fedflow.errors import InputError

app = typer.Typer(help="Workloads: make one, check it, try it.", no_args_is_help=True)
app.command(epilog="Example: fedflow workload new sepsis")(new)
app.command(epilog="Example: fedflow workload check trivial --data rows.csv")(check)
app.command("try", epilog="Example: fedflow workload try trivial a.csv b.csv c.csv --plan t.toml")(
    attempt
)

#: Workload -> where its sites' rows come from, where they do not come with fedflow.
_ELSEWHERE = {
    "image": "mnist",
    "shakespeare": "shakespeare",
    "mails": "mails",
    "housing": "towns",
}
_MADE = ("trivial", "two-input")  # rows made up for any site label
_KNOWN = (*_MADE, "randhie", "svm", *_ELSEWHERE)


@app.command(epilog="Example: fedflow workload example trivial --site berlin -o rows.csv")
def example(
    name: Annotated[
        str, typer.Argument(help="trivial, two-input (made-up rows), randhie, svm and others.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write one site's rows to this new file.")
    ] = None,
    site: Annotated[
        str,
        typer.Option(help="Whose rows: any label for made-up ones, 1 to 6 for randhie, svm."),
    ] = "1",
    plan: Annotated[
        Path | None, typer.Option(help="Write the plan that comes with it to this new file.")
    ] = None,
) -> None:
    """Write one site's rows, a plan, or both. The rows are nobody's, or in the public domain.

    Other data have a command of their own, which is named when you ask for them.
    """
    if output is None and plan is None:
        raise InputError("say what to write: --output for rows, --plan for a plan")
    if name not in _KNOWN:
        raise InputError(f"{name!r} has no example", field="NAME", allowed=", ".join(_KNOWN))
    console = Console()
    if output is not None:
        rows = _rows(name, site)
        _write(output, rows)
        count = rows.count(b"\n") - 1
        console.print(f"wrote {output}: {count} rows of site {site}", soft_wrap=True)
    if plan is not None:
        _write(plan, resources.files("flows").joinpath("plans", f"{name}.toml").read_bytes())
        console.print(f"wrote {plan}: see `fedflow plan check {plan}`", soft_wrap=True)


def _rows(name: str, site: str) -> bytes:
    if name in _ELSEWHERE:
        raise InputError(
            f"the data of {name!r} do not come with fedflow; with its source: python -m"
            f" benchmarks.data.sites {_ELSEWHERE[name]} FOLDER",
            field="--output",
        )
    if name == "trivial":
        from fedflow.learning.trivial import site_table

        return site_table(site)
    if name == "two-input":
        from fedflow.workloads.two_input import site_table as two_inputs

        return two_inputs(site)
    from fedflow.learning.randhie import partition_sites, vendored_table

    sites = partition_sites(vendored_table())
    if site not in sites:
        raise InputError(f"there is no site {site!r}", field="--site", allowed=", ".join(sites))
    return sites[site]


def _write(path: Path, data: bytes) -> None:
    """A new file for this user only; never over another."""
    try:
        with open(path, "xb") as file:
            path.chmod(0o600)
            file.write(data)
    except FileExistsError:
        raise InputError("a file is here already; name another", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from None
