"""``fedflow workload check`` and ``try``: a workload and its data on one machine, without a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedflow.cli.learned import show
from fedflow.errors import InputError, Refusal
from fedflow.extras import need

if TYPE_CHECKING:
    from fedflow.learning.clipping import Clipper
    from fedflow.learning.plan import Plan
    from fedflow.learning.workload import PersonData, Persons, Workload

_NORM = 1.0


def check(
    name: Annotated[str, typer.Argument(help="An installed workload.")],
    data: Annotated[Path, typer.Option(help="One site's data file.")],
    unit: Annotated[
        str, typer.Option(help="What is to be protected as a whole: person or record.")
    ] = "person",
) -> None:
    """Load the data, take one private step, and say how gradients are clipped. Nothing is kept.

    Prints shapes and numbers of persons, never values. A model that mixes persons is refused.
    """
    if unit not in ("person", "record"):
        raise InputError(f"{unit!r} is no unit", field="--unit", allowed="person, record")
    need("site")
    from fedflow.learning.clipping import Clipper
    from fedflow.learning.workload import find_workload, model_spec, units_of

    workload = find_workload(name)
    console = Console()
    loaded = workload.load(data)
    console.print(f"workload [bold]{name}[/] reads {data}", soft_wrap=True)
    console.print(_shapes(loaded, workload))
    model = workload.build_model()
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    spec = model_spec(workload)
    console.print(
        f"model: {spec.dimension:,} parameters are trained and travel"
        + (f", {frozen:,} are frozen and do not" if frozen else "")
    )
    clipper = Clipper(workload, model, clipping_norm=_NORM, max_physical_batch=64)
    _one_step(clipper, units_of(loaded.train, unit), console)
    console.print(f"it can be trained privately per {unit}; gradients by {clipper.method}")


def _shapes(data: PersonData, workload: Workload) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("array", "shape", "type", "what"):
        table.add_column(column)
    persons = data.train
    rows, features = persons.x.shape[1:]
    what = f"{rows} rows at most of {features} features"
    if vocabulary := getattr(workload, "vocabulary", 0):
        what = f"{rows} rows at most of {features} tokens below {vocabulary}"
    table.add_row("train x", str(list(persons.x.shape)), str(persons.x.dtype), what)
    targets = "one target per row" if persons.y.ndim == 2 else "several targets per row"
    table.add_row("train y", str(list(persons.y.shape)), str(persons.y.dtype), targets)
    table.add_row("train mask", str(list(persons.mask.shape)), str(persons.mask.dtype), "real rows")
    table.add_row("holdout x", str(list(data.holdout.x.shape)), str(data.holdout.x.dtype), "")
    return table


def _one_step(clipper: Clipper, units: Persons, console: Console) -> None:
    import torch

    from fedflow.crypto.csprng import Csprng
    from fedflow.learning.batches import poisson_batches
    from fedflow.learning.dpsgd import PrivateStep

    csprng = Csprng.from_os()
    rate = min(1.0, 32 / len(units))
    optimizer = torch.optim.SGD(clipper.parameters, lr=0.01)
    step = PrivateStep(
        clipper, optimizer, stddev=_NORM, divisor=rate * len(units), csprng=csprng.child("noise")
    )
    for batch in poisson_batches(units, 1, rate, csprng.child("sampling")):
        step(*batch)
    if not all(bool(parameter.isfinite().all()) for parameter in clipper.parameters):
        raise Refusal("diverged", "one small step made the model not finite: look at the loss")
    console.print("one step with clipping and noise: done, the model is finite")


def attempt(
    name: Annotated[str, typer.Argument(help="An installed workload.")],
    data: Annotated[list[Path], typer.Argument(help="Data files: each is a site.")],
    plan: Annotated[Path, typer.Option(help="The plan (TOML).")],
    sites: Annotated[
        int | None, typer.Option(min=2, help="Deal one file's persons to so many made-up sites.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Fewer than the plan's.")] = None,
    secure: Annotated[
        bool, typer.Option("--secure/--plain", help="With masks, or to the same sum without.")
    ] = True,
) -> None:
    """Run a plan in this process: the sites' own code, masks and noise included, on your files.

    For trying only: no ledger is charged, and scores are exact, so both stay on this machine.
    """
    from fedflow.learning.plan import load_plan

    loaded = load_plan(plan)
    if loaded.plan.workload != name:
        raise InputError(
            f"the plan is for workload {loaded.plan.workload!r}, not {name!r}", where=str(plan)
        )
    need("site")
    from fedflow.learning.workload import find_workload

    workload = find_workload(name)
    parts = _sites(workload, data, sites, loaded)
    _run(workload, parts, loaded, rounds or loaded.plan.rounds, secure)


def _sites(
    workload: Workload, files: Sequence[Path], sites: int | None, plan: Plan
) -> list[PersonData]:
    from fedflow.learning.groups import check_groups

    parts = [workload.load(path) for path in files]
    if sites is not None:
        if len(parts) != 1:
            raise InputError("goes with one data file, whose persons are dealt", field="--sites")
        parts = _dealt(parts[0], sites)
    if len(parts) < plan.cohort.minimum:
        raise InputError(
            f"{len(parts)} sites, and the plan opens no sum below {plan.cohort.minimum}; name more"
            " files, or deal one with --sites",
            field="DATA",
        )
    check_groups(plan, len(parts))
    return parts


def _dealt(data: PersonData, sites: int) -> list[PersonData]:
    from fedflow.crypto.csprng import Csprng
    from fedflow.learning.workload import PersonData
    from fedflow.simulation import partition

    if min(len(data.train), len(data.holdout)) < sites:
        raise InputError("there are fewer persons than that", field="--sites")
    csprng = Csprng.from_os()
    train = partition.iid(len(data.train), sites, csprng)
    held = partition.iid(len(data.holdout), sites, csprng)
    return [
        PersonData(data.train.take(a), data.holdout.take(b))
        for a, b in zip(train, held, strict=True)
    ]


def _run(
    workload: Workload, sites: list[PersonData], plan: Plan, rounds: int, secure: bool
) -> None:
    from fedflow.crypto.csprng import Csprng
    from fedflow.learning.evaluation import exact_score_of_sites
    from fedflow.learning.methods.learned import learned, tells
    from fedflow.learning.metrics import METRICS
    from fedflow.learning.model_file import unflatten
    from fedflow.learning.workload import units_of
    from fedflow.privacy.plan_cost import plan_cost
    from fedflow.simulation.federation import Federation

    console = Console()
    held = [units_of(site.holdout, plan.privacy.unit) for site in sites]
    federation = Federation(workload, sites, plan, Csprng.from_os(), secure=secure)
    label = METRICS[plan.evaluation.metric].label

    def score() -> str:
        if not plan.is_scored:
            return "done"
        models = [model for model, _ in federation.site_models()]
        found = exact_score_of_sites(workload, list(zip(held, models, strict=True)), plan)
        return f"{label} {found:.3f} on {sum(map(len, held))} held-out units"

    begin = f"; the first model: {score()}" if plan.is_scored else ""
    console.print(f"{len(sites)} sites{begin}")
    for number in range(1, rounds + 1):
        federation.round()
        if plan.is_evaluated(number) or number == rounds:
            console.print(f"round {number} of {rounds}: {score()}")
    if tells(plan):
        show(learned(unflatten(federation.state, federation.spec), workload, plan), console)
    paid = plan_cost(plan).total
    console.print(
        f"by its {plan.plan.rounds} rounds the plan costs epsilon {paid.train_epsilon:.2f} at delta"
        f" {plan.privacy.delta:g} per {plan.privacy.unit}"
        + ("; these scores are exact, without noise: keep them here" if plan.is_scored else "")
    )
