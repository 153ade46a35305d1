"""``fedflow audit empirical``: from a plan's file to a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console, RenderableType
from rich.progress import Progress

from fedflow.audit.empirical.black_box import audit_black_box
from fedflow.audit.empirical.render import render
from fedflow.audit.empirical.report import EmpiricalReport
from fedflow.audit.empirical.sources import load_sites
from fedflow.audit.empirical.white_box import audit_white_box
from fedflow.crypto.csprng import Csprng
from fedflow.errors import InputError
from fedflow.learning.plan import load_plan
from fedflow.learning.plan_sections import PreprocessingSection
from fedflow.learning.preprocessing import Prepared, prepared_data
from fedflow.learning.workload import Workload, find_workload

CANARIES, CANARY_SITES = 1000, 200


def run_audit(
    path: Path,
    *,
    canaries: int | None,
    white_box: bool,
    rounds: int | None,
    sites: int | None,
    files: Sequence[Path],
    secure: bool,
    quiet: bool,
) -> tuple[EmpiricalReport, RenderableType]:
    """Audit the plan at ``path``; the report, and the same for a terminal.

    A progress bar is on standard error unless ``quiet``. InputError when plan, data and options do
    not go together.
    """
    plan = load_plan(path)
    if plan.cycle > 1 or plan.secure_aggregation.density < 1:
        raise InputError(
            "has groups or sparse updates, which canaries do not follow; audit the same plan"
            " without participation.groups and secure_aggregation.density",
            where=str(path),
        )
    workload: Workload = find_workload(plan.plan.workload)
    data = load_sites(workload, files, sites)
    if plan.is_prepared:  # a canary stands in prepared data, whatever they were
        data = [prepared_data(site, plan, workload) for site in data]
        workload, plan = (
            Prepared(workload),
            plan.model_copy(update={"preprocessing": PreprocessingSection()}),
        )
    units_are_sites = plan.privacy.unit == "site"
    count = canaries or (CANARY_SITES if units_are_sites else CANARIES)
    if units_are_sites and white_box:
        count = max(count, plan.cohort.minimum - plan.cohort.colluders)
    elif len(data) < plan.cohort.minimum:
        raise InputError(
            f"{len(data)} sites are fewer than the plan's cohort.minimum",
            field="--sites",
            allowed=f"at least {plan.cohort.minimum}",
        )
    torch.set_num_threads(1)  # as in a site's training process; tensors are small
    audit = audit_white_box if white_box else audit_black_box
    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        report = audit(
            workload,
            data,
            plan,
            Csprng.from_os(),
            canaries=count,
            rounds=rounds or plan.plan.rounds,
            secure=secure,
            progress=lambda part, done, of: bar.update(
                task, description=part, completed=done, total=of
            ),
        )
    return report, render(report, own_data=bool(files))
