"""The HTML report of a job. That of an audit is in :mod:`fedflow.report.audit_page`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedflow.report import closing, sections
from fedflow.report.markup import Html, join, tag
from fedflow.report.page import page, write_page
from fedflow.report.plots import Figure, figures

TITLES = {
    "auc": (
        "Quality by round",
        "The global model on held-out people, measured by a masked and noised sum. Bars: two "
        "standard errors of that noise. Flat lines: models trained without privacy.",
    ),
    "epsilon": (
        "Privacy spent by round",
        "Cumulative ε at each site's own ledger. Sites with the same history share a line.",
    ),
    "time": ("Time by round", "Wall time of each round, split into training and everything else."),
    "bytes": ("Bytes sent by site", "Masked updates, keys, shares and signatures, all rounds."),
}
MINOR = {"epsilon", "bytes"}


def render_html(facts: Mapping[str, Any]) -> str:
    """The whole page as text. ``facts`` as in :class:`fedflow.report.facts.ReportFacts`."""
    made = figures(facts)
    body = join(
        [
            sections.heading(facts),
            sections.headline(facts),
            _plots(made),
            sections.quality(facts),
            sections.budgets(facts),
            sections.rounds(facts),
            closing.guaranteed(facts),
            closing.audit(facts.get("audit") or {}),
            closing.details(facts),
        ]
    )
    return page(f"{facts.get('job', 'job')} · fedflow report", body, made)


def write_report(facts: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write :func:`render_html` to ``path`` in one step; returns the path."""
    return write_page(render_html(facts), path)


def _plots(made: Mapping[str, Figure]) -> Html:
    shown = []
    for name in made:
        title, caption = TITLES[name]
        shown.append(
            Html(
                f'<figure class="{"minor" if name in MINOR else "major"}">{tag("h3", title)}'
                f'{tag("figcaption", caption)}<div class="plot" id="plot-{name}"></div></figure>'
            )
        )
    return tag("div", *shown, cls="plots") if shown else Html("")
