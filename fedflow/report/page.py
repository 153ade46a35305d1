"""The shell of every page: everything inlined, nothing loaded, nothing sent.

A content security policy inside the page forbids every network access and every script but the
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

from fedflow.report.markup import Html, tag, text
from fedflow.report.plots import Figure
from fedflow.report.style import CSS

FOOTER = tag(
    "footer",
    "Made by fedflow. This page holds everything it shows and opens no connection. "
    "Plots, where there are any: plotly.js, MIT licence.",
)

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


def page(title: str, body: Html, figures: Mapping[str, Figure] | None = None) -> str:
    """A whole page. Each figure is drawn into the element ``plot-<name>`` of ``body``."""
    scripts = []
    if figures:
        from plotly.offline import get_plotlyjs  # not at every site: see the extras

        scripts = [get_plotlyjs(), _DRAW]
    sources = " ".join(map(_source, scripts)) or "'none'"
    policy = (
        "default-src 'none'; connect-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {sources}; base-uri 'none'; form-action 'none'"
    )
    drawn = f'<script type="application/json" id="figures">{_json(figures)}</script>'
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{text(title)}</title>",
            f"<style>{CSS}</style></head>",
            f"<body><main>{body}{FOOTER}</main>",
            *([drawn] if figures else []),
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>",
            "",
        ]
    )


def write_page(content: str, path: str | os.PathLike[str]) -> Path:
    """Write a page to ``path`` in one step (a reader never sees half of it); returns the path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.write_text(content, encoding="utf-8")
    part.replace(target)
    return target


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
