"""One self-contained HTML page: everything inlined, nothing loaded, nothing sent.

A content security policy inside the page forbids every network access and every script but the two
inlined ones, named by their SHA-256. A label that tries to be a script stays text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from fedflow.report import sections
from fedflow.report.markup import Html, join, tag, text
from fedflow.report.plots import Figure, figures
from fedflow.report.style import CSS

TITLES = {
    "auc": (
        "Quality by round",
        "The global model on held-out people, measured by a masked and noised histogram. Bars: two "
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

_DRAW = """
(function(){
  var figures = JSON.parse(document.getElementById('figures').textContent);
  var options = {responsive: true, displaylogo: false, displayModeBar: false, showTips: false};
  Object.keys(figures).forEach(function(name){
    Plotly.newPlot('plot-' + name, figures[name].data, figures[name].layout, options);
  });
  window.addEventListener('beforeprint', function(){
    Object.keys(figures).forEach(function(name){ Plotly.Plots.resize('plot-' + name); });
  });
})();
"""


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
            sections.guaranteed(facts),
            sections.audit(facts),
            sections.details(facts),
            tag(
                "footer",
                "Made by fedflow from the facts of this job. This page holds everything it shows "
                "and opens no connection. Plots: plotly.js, MIT licence.",
            ),
        ]
    )
    library, draw = get_plotlyjs(), _DRAW
    policy = (
        "default-src 'none'; connect-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {_source(library)} {_source(draw)}; base-uri 'none'; form-action 'none'"
    )
    title = text(facts.get("job", "job"))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{title} · fedflow report</title>",
            f"<style>{CSS}</style></head>",
            f"<body><main>{body}</main>",
            f'<script type="application/json" id="figures">{_json(made)}</script>',
            f"<script>{library}</script>",
            f"<script>{draw}</script>",
            "</body></html>",
            "",
        ]
    )


def write_report(facts: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page to ``path`` in one step (a reader never sees half of it); returns the path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.write_text(render_html(facts), encoding="utf-8")
    part.replace(target)
    return target


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


def _json(value: object) -> str:
    # "</script" or "<!--" inside a JSON string would end the element: no "<" survives
    made = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return made.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    # a score that is not a number (one class only) is a gap in the plot
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value


def _source(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
