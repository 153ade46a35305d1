"""``fedflow job``: have the authority sign a job, publish it, look at how it stands."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedflow.cli.learned import show_learned
from fedflow.coordinator.settings import open_coordinator
from fedflow.errors import InputError, Refusal
from fedflow.exchange.base import unreachable
from fedflow.federation.authority import DAY, AuthorityFolder, changing, open_authority
from fedflow.federation.job_view import JobView, jobs_of, view
from fedflow.federation.jobs import copy_folder, ending_within, make_job, publish_folder
from fedflow.federation.scoring import (
    final_model,
    is_digest,
    read_model,
    scoring_plan,
    stored_model,
)
from fedflow.learning.metrics import METRICS
from fedflow.learning.model_file import model_digest
from fedflow.learning.plan import load_plan
from fedflow.report import words
from fedflow.report.spread import newest_spread, spread_lines
from fedflow.settings_file import read_text

app = typer.Typer(help="Make jobs, publish them, see how they stand.", no_args_is_help=True)
Coordinator = Annotated[Path, typer.Option("--coordinator", help="The coordinator's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts for machines.")]
app.command("learned", epilog="Example: fedflow job learned spring-1 --coordinator ./coordinator")(
    show_learned
)


@app.command(
    epilog="Example: fedflow job create ./authority --plan flows/plans/randhie.toml --job spring-1"
)
def create(
    federation: Annotated[Path, typer.Argument(help="The authority's folder.")],
    plan: Annotated[Path, typer.Option(help="The plan, a TOML file.")],
    job: Annotated[str, typer.Option(help="The job's id: lower-case letters, digits, dashes.")],
    sites: Annotated[
        str, typer.Option(help="Labels of the sites, with commas; all active ones by default.")
    ] = "",
    coordinator: Annotated[
        str | None, typer.Option(help="The coordinator's label, where there are several.")
    ] = None,
    valid_days: Annotated[
        int, typer.Option(min=1, max=3650, help="How long sites take orders of this job.")
    ] = 1,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SHA256",
            help="Only score this model: a file, or the digest of a model in the exchange.",
        ),
    ] = None,
    evaluate_job: Annotated[
        str | None, typer.Option(metavar="JOB", help="Only score the final model of this job.")
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(help="Write the files here instead, to be carried to the coordinator."),
    ] = None,
) -> None:
    """Sign a job for members of the federation and publish it. A job never changes afterwards.

    With --evaluate or --evaluate-job it trains nothing, whatever rounds the plan has: it scores a
    trained model once, for the price of one evaluation.
    """
    if evaluate is not None and evaluate_job is not None:
        raise InputError("name one of --evaluate and --evaluate-job")
    console, labels = Console(), [name.strip() for name in sites.split(",")] if sites else None
    proposed, trained = load_plan(plan), None
    with changing(federation) as authority:
        if evaluate is not None or evaluate_job is not None:
            proposed = scoring_plan(proposed)
            trained = _trained(authority, evaluate, evaluate_job)
            digest = model_digest(trained).hex()
            console.print(f"to be scored once, without training: model {digest}", soft_wrap=True)
        folder, manifest = make_job(
            authority,
            job=job,
            plan=proposed,
            sites=labels,
            coordinator=coordinator,
            valid_days=valid_days,
            trained=trained,
        )
        named = ", ".join(entry.label for entry in manifest.roster)
        console.print(f"signed job [bold]{job}[/] for {named}, {valid_days} days", soft_wrap=True)
        for member in ending_within(manifest, authority.members):
            days = max(0, (member.not_after - manifest.created) // DAY)
            console.print(
                f"[yellow]the membership of {member.label} ends in {days} days, before the job[/]"
            )
        if offline is not None:
            copy_folder(folder, offline)
            how = f"`fedflow job publish {offline} --coordinator FOLDER`"
            console.print(
                f"wrote {offline}: carry it to the coordinator, then {how}", soft_wrap=True
            )
            return
        try:
            authority.publish()
            publish_folder(folder, authority.exchange(), authority.identity.public)
        except OSError as error:
            raise Refusal(
                "exchange-unavailable",
                f"the job is signed but not published, as the exchange cannot be reached ({error});"
                f" later: fedflow job publish {folder} --federation {federation}",
            ) from None
    console.print(f"published in {authority.settings.exchange}", soft_wrap=True)
    console.print(f"for an auditor: {folder / 'roster.json'}", soft_wrap=True)


@app.command(epilog="Example: fedflow job publish ./spring-1 --coordinator ./coordinator")
def publish(
    folder: Annotated[Path, typer.Argument(help="A job's files, as `job create` wrote them.")],
    coordinator: Annotated[
        Path | None, typer.Option(help="The coordinator's folder, to publish as it.")
    ] = None,
    federation: Annotated[
        Path | None, typer.Option(help="The authority's folder, to publish as it.")
    ] = None,
) -> None:
    """Put a signed job into the exchange. Doing it again changes nothing."""
    if (coordinator is None) == (federation is None):
        raise InputError("name one of --coordinator and --federation")
    try:
        if coordinator is not None:
            opened = open_coordinator(coordinator)
            exchange, authority = opened.exchange, opened.authority
        else:
            assert federation is not None
            signer = open_authority(federation)
            exchange, authority = signer.exchange(), signer.identity.public
        manifest = publish_folder(folder, exchange, authority)
    except OSError as error:
        raise unreachable(error) from None
    Console().print(f"published job [bold]{manifest.job}[/]")


@app.command("list", epilog="Example: fedflow job list --coordinator ./coordinator")
def list_jobs(coordinator: Coordinator, as_json: AsJson = False) -> None:
    """All jobs in the coordinator's exchange, and how they stand."""
    try:
        opened = open_coordinator(coordinator)
        views = [view(opened, name) for name in jobs_of(opened)]
    except OSError as error:
        raise unreachable(error) from None
    if as_json:
        typer.echo(json.dumps([one.facts() for one in views]))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("job", "state", "plan", "rounds", "sites", "score", "until"):
        table.add_column(heading, no_wrap=heading == "job")
    for one in sorted(views, key=lambda v: (v.created, v.job)):
        table.add_row(one.job, one.state, one.plan, *_figures(one), _day(one.not_after))
    Console().print(table if views else "there are no jobs in the exchange")


@app.command(epilog="Example: fedflow job show spring-1 --coordinator ./coordinator")
def show(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    coordinator: Coordinator,
    as_json: AsJson = False,
) -> None:
    """One job: its state, its sites, and every finished round."""
    try:
        one = view(open_coordinator(coordinator), job)
    except OSError as error:
        raise unreachable(error) from None
    if as_json:
        typer.echo(json.dumps(one.facts()))
        return
    console = Console()
    why = f" ({one.reason})" if one.reason else ""
    console.print(f"job [bold]{one.job}[/]: {one.state}{why}", soft_wrap=True)
    if not one.plan:
        return
    console.print(
        f"plan {one.plan}, {one.rounds} of {one.planned} rounds, until {_day(one.not_after)}"
    )
    missing = sorted(set(one.sites) - set(one.joined))
    console.print(f"sites {', '.join(one.sites)}", soft_wrap=True)
    if missing:
        console.print(f"not joined yet: {', '.join(missing)}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    personal = any(record.personalised is not None for record in one.records)
    scores = [METRICS[one.metric].label, *(["personalised"] if personal else [])]
    for heading in ("round", "sites", "without", *scores, "seconds", "sent per site"):
        table.add_column(heading, justify="left" if heading == "without" else "right")
    for record in one.records:
        without = [*record.refused, *record.dropped, *record.absent]
        table.add_row(
            str(record.number),
            str(len(record.sites)),
            ", ".join(without),
            "" if record.score is None else f"{record.score:.3f}",
            *([] if not personal else [words.auc(record.personalised)]),
            f"{record.seconds:.1f}",
            words.size(record.bytes_per_site),
        )
    if one.records:
        console.print(table)
    if lines := spread_lines(newest_spread([record.facts() for record in one.records])):
        console.print(f"sites by their own {METRICS[one.metric].label}", *lines, sep="\n")
    console.print(f"model {one.model}", soft_wrap=True)


@app.command(
    epilog="Example: fedflow job preprocessing columns-1 --coordinator ./coordinator"
    " --plan plan.toml -o prepared.toml"
)
def preprocessing(
    job: Annotated[str, typer.Argument(help="A finished job that describes data.")],
    coordinator: Coordinator,
    plan: Annotated[
        Path | None, typer.Option(help="A plan to put the section into; it stays as it is.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file, instead of the terminal.")
    ] = None,
) -> None:
    """The [preprocessing] section that follows from a job's noised statistics.

    It costs nothing: what was opened is public, and paid for.
    """
    from fedflow.federation.described import described  # torch: seconds that --help need not wait

    opened = open_coordinator(coordinator)
    try:
        text = described(opened.exchange, job, opened.authority).toml()
    except OSError as error:
        raise unreachable(error) from None
    if plan is not None:
        before = read_text(plan)
        if load_plan(plan).is_prepared:
            raise InputError(
                "there is such a section already", where=str(plan), field="preprocessing"
            )
        text = f"{before.rstrip()}\n\n{text}"
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.exists():
        raise InputError("is there already; choose a new file", where=str(output))
    output.write_text(text, "utf-8")
    if plan is not None:
        load_plan(output)
    Console().print(f"wrote {output}", soft_wrap=True)


def _trained(authority: AuthorityFolder, named: str | None, job: str | None) -> bytes:
    """The model file that is to be scored."""
    try:
        if job is not None:
            return final_model(authority.exchange(), job, authority.identity.public)
        assert named is not None
        if is_digest(named):
            return stored_model(authority.exchange(), named)
    except OSError as error:
        raise unreachable(error) from None
    return read_model(Path(named))


def _figures(one: JobView) -> tuple[str, str, str]:
    if not one.plan:
        return "", "", ""
    score = "" if one.score is None else f"{one.score:.3f}"
    return f"{one.rounds}/{one.planned}", f"{len(one.joined)}/{len(one.sites)}", score


def _day(seconds: int) -> str:
    if not seconds:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
