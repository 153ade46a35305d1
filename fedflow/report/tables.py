"""The end of a job in the terminal: the same facts as the HTML report, as rich tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedflow.report import words
from fedflow.report.facts import (
    better_by,
    is_personalised,
    labels,
    metric,
    sent_per_site,
    summarise,
)
from fedflow.report.spread import newest_spread, spread_lines


def summary_tables(facts: Mapping[str, Any]) -> RenderableType:
    """Quality, privacy per site, rounds, and one closing line, as one rich renderable."""
    parts: list[Table | Text] = [
        *([quality_table(facts)] if "auc_global" in facts else []),  # else data were described
        privacy_table(facts),
        rounds_table(facts),
        *spread(facts),
        closing(facts),
    ]
    return Group(*(Padding(part, (1, 0, 0, 0)) for part in parts))


def print_summary(facts: Mapping[str, Any], console: Console | None = None) -> None:
    """Print :func:`summary_tables` to ``console`` (standard output by default)."""
    (console or Console()).print(summary_tables(facts))


def quality_table(facts: Mapping[str, Any]) -> Table:
    """The score of the global model beside the baselines."""
    s, auc = summarise(facts), facts.get("auc_global")
    table = plain_table("Quality on held-out people")
    table.add_column("model")
    table.add_column("privacy")
    table.add_column(metric(facts).label, justify="right")
    table.add_column("global is better by", justify="right")
    spent = f"ε ≤ {words.epsilon(s.worst_epsilon)} per {s.unit}"
    table.add_row("global model of this job", spent, words.auc(auc), "", style="bold cyan")
    if (own := facts.get("auc_personalised")) is not None:
        table.add_row("each site's own model", spent, words.auc(own), _difference(facts, auc, own))
    for name, key in (
        ("pooled, all data in one place", "auc_pooled"),
        ("federated, without privacy", "auc_federated_no_privacy"),
        ("each site alone, mean", "auc_alone_mean"),
    ):
        value = facts.get(key)
        if value is not None:
            table.add_row(name, "none (baseline)", words.auc(value), _difference(facts, auc, value))
    for label, value in (facts.get("auc_alone") or {}).items():
        row = (Text(f"  {label} alone"), "none (baseline)", words.auc(value))
        table.add_row(*row, _difference(facts, auc, value), style="dim")
    return table


def privacy_table(facts: Mapping[str, Any]) -> Table:
    """ε spent and left, and the totals of every site."""
    budget, delta = facts.get("epsilon_budget"), facts.get("delta")
    title = f"Privacy per {summarise(facts).unit}: budget ε = {words.epsilon(budget)}"
    table = plain_table(f"{title}, δ = {words.delta(delta)}")
    table.add_column("site")
    for name in ("rounds", "ε spent", "ε left", "ε by second accountant", "sent"):
        table.add_column(name, justify="right")
    spent, left = facts.get("epsilon_spent") or {}, facts.get("epsilon_left") or {}
    second = facts.get("epsilon_pld") or {}
    for label in labels(facts):
        took = [r for r in facts.get("rounds") or () if label in (r.get("sites") or ())]
        sent = [(r.get("bytes") or {}).get(label, 0) for r in facts.get("rounds") or ()]
        table.add_row(
            Text(label),
            str(sum(not r.get("aborted") for r in took)),
            words.epsilon(spent.get(label)),
            words.left(left.get(label)),
            words.epsilon(second.get(label)),
            words.size(sum(sent)) if any(sent) else words.MISSING,
        )
    return table


def rounds_table(facts: Mapping[str, Any]) -> Table:
    """One line per round: participation, score, seconds, bytes."""
    table, own = plain_table("Rounds"), ("personalised",) if is_personalised(facts) else ()
    for name in (
        "round",
        "sites",
        metric(facts).label,
        "± noise",
        *("own" for _ in own),  # there is no room for a longer word
        "seconds",
        "training",
        "other",
        "sent",
    ):
        table.add_column(name, justify="right")
    table.add_column("remarks")
    for r in facts.get("rounds") or ():
        total, training = r.get("seconds"), r.get("training_seconds")
        known = total is not None and training is not None
        other = max(0.0, total - training) if known else None
        table.add_row(
            str(r.get("number", "")),
            str(len(r.get("sites") or ())),
            words.auc(r.get("score")),
            words.auc(r.get("score_stderr")) if r.get("score") is not None else words.MISSING,
            *(words.auc(r.get(name)) for name in own),
            words.seconds(total),
            words.seconds(training),
            words.seconds(other),
            words.size(sent_per_site(r)),
            Text(remarks(r)),
            style="red" if r.get("aborted") else "",
        )
    return table


def spread(facts: Mapping[str, Any]) -> list[Table | Text]:
    """The sites by their own score, where the plan counts them."""
    lines = spread_lines(newest_spread(facts.get("rounds") or ()))
    title = f"Sites by their own {metric(facts).label}"
    return [Text("\n".join([title, *lines]))] if lines else []


def remarks(r: Mapping[str, Any]) -> str:
    """Who dropped out, who refused and why, and why a round was aborted."""
    parts = []
    if r.get("aborted"):
        parts.append(f"aborted: {r.get('reason') or 'no reason given'}")
    if r.get("dropped"):
        recovered = " (masks recovered)" if r.get("recovered") else ""
        parts.append(f"lost {words.names(list(r['dropped']))}{recovered}")
    if r.get("absent"):
        parts.append(f"{words.names(list(r['absent']))} away")
    if r.get("resting"):
        parts.append(f"{len(r['resting'])} resting")
    parts += [f"{n} refused: {why}" for n, why in (r.get("refused") or {}).items()]
    return "; ".join(parts)


def closing(facts: Mapping[str, Any]) -> Text:
    """The audit's result and where to look next."""
    ok, out = facts.get("audit_ok"), Text()
    if facts.get("stopped_early"):
        out.append(f"the job ended early: {facts['stopped_early']}\n", style="bold red")
    if ok is None:
        out.append("audit not run\n", style="yellow")
    else:
        word, style = ("verified", "bold green") if ok else ("FAILED", "bold red")
        out.append("audit ").append(word, style=style).append("\n")
    for name, key in (("report", "report"), ("folder", "folder"), ("Prefect", "prefect_url")):
        if facts.get(key):
            out.append(f"{name:<8}", style="dim").append(f"{facts[key]}\n")
    return out


def _difference(facts: Mapping[str, Any], score: float | None, other: float) -> Text:
    if score is None:
        return Text(words.MISSING)
    gain = better_by(facts, score, other)
    return Text(words.signed(gain), style="green" if gain > 0 else "red")


def plain_table(title: str) -> Table:
    """An empty table in the one style of our terminal output."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
    )
