"""``fedflow site model``: a job's model for the site's own use, with what only the site has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedflow.errors import InputError
from fedflow.exchange.base import unreachable
from fedflow.extras import need
from fedflow.site.config import open_site


def write_own_model(
    folder: Annotated[Path, typer.Argument(help="The site's folder.")],
    job: Annotated[str, typer.Argument(help="The job's id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new safetensors file.")],
    fine_tune: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="So many more local trainings of the plan, on all of this data."
        ),
    ] = 0,
) -> None:
    """Write a job's model for this site's own use: with its own layers and its own update.

    The newest model whose history the site checked itself. With --fine-tune it is trained further
    on the site's data, without clipping and noise. Nothing is sent and no budget is charged: keep
    the file and the scores at the site.
    """
    need("site")
    from fedflow.learning.metrics import METRICS
    from fedflow.learning.model_file import encode_model
    from fedflow.site.durable import write_durably
    from fedflow.site.own_model import own_model

    site = open_site(folder)
    if output.exists():
        raise InputError("is there already; name a new file", where=str(output), field="--output")
    try:
        own = own_model(site, job)
    except OSError as error:
        raise unreachable(error) from None
    data = own.workload.load(site.dataset(site.policy.dataset_for(own.plan.plan.workload)[0]))
    model = own.tuned(data, fine_tune) if fine_tune else own.personal
    try:
        write_durably(output, encode_model(model))
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}"
        raise InputError(why, where=str(output), field="--output") from None
    console = Console(soft_wrap=True)
    console.print(f"wrote {output}: {job} after {own.orders} orders", highlight=False)
    if not own.plan.is_scored or not len(data.holdout):
        return
    shown = [("shared model", own.shared)]
    if own.plan.evaluation.personalised:
        shown.append(("personalised", own.personal))
    if fine_tune:
        shown.append((f"fine-tuned {fine_tune} times", model))
    label = METRICS[own.plan.evaluation.metric].label
    for name, each in shown:
        console.print(f"  {name:<24} {label} {own.score(data, each):.4f}", highlight=False)
    console.print(
        f"exact, on this site's own {len(data.holdout)} held-out units, and the file may tell of"
        " its data: keep both here"
    )
