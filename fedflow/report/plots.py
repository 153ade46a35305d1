"""The plots of a job, as plain plotly figures (dictionaries of data and layout).

Plain dictionaries keep this room free of heavy imports; the tests pass each of them through
plotly's own validation. Text that came from outside is escaped: plotly draws a subset of HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fedflow.report import words
from fedflow.report.facts import labels, metric

Figure = dict[str, Any]

INK, MUTED, GRID = "#1b2733", "#5b6b7b", "#e6ebf0"
ACCENT, WARM, SOFT = "#0b6e8a", "#d9822b", "#b9c6d2"
# Okabe-Ito, told apart by readers with any colour vision
SITE_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#7a5cc0",
    "#444444",
)
TALL = 400  # pixels: plots whose legend takes several lines
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


def figures(facts: Mapping[str, Any]) -> dict[str, Figure]:
    """Every plot the facts can support, by name, in reading order."""
    makers = {
        "auc": auc_by_round,
        "epsilon": epsilon_by_round,
        "time": time_by_phase,
        "bytes": bytes_by_site,
    }
    made = {name: make(facts) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def auc_by_round(facts: Mapping[str, Any]) -> Figure | None:
    """AUC of the global model by round, two standard errors of the added noise, and baselines."""
    seen = [r for r in facts.get("rounds") or () if r.get("score") is not None]
    lines = [
        ("pooled, no privacy", facts.get("auc_pooled"), "dash", INK),
        ("federated, no privacy", facts.get("auc_federated_no_privacy"), "dashdot", "#009e73"),
        ("mean of sites alone, no privacy", facts.get("auc_alone_mean"), "dot", WARM),
    ]
    present = [(n, float(v), d, c) for n, v, d, c in lines if v is not None]
    if not seen and not present:
        return None
    xs = [r["number"] for r in seen]
    errors = [2 * float(r.get("score_stderr") or 0) for r in seen]
    numbers = [r["number"] for r in facts.get("rounds") or ()] or [1]
    low, high = min(numbers), max(numbers)
    data: list[dict[str, Any]] = []
    for name, value, dash, colour in present:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [low - 0.4, high + 0.4],
                "y": [value, value],
                "name": f"{name} · {words.auc(value)}",
                "line": {"dash": dash, "color": colour, "width": 2},
                "hovertemplate": f"{name}: {words.auc(value)}<extra></extra>",
            }
        )
    if seen:
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": xs,
                "y": [r["score"] for r in seen],
                "error_y": {
                    "type": "data",
                    "array": errors,
                    "color": "rgba(11,110,138,0.45)",
                    "thickness": 1.4,
                    "width": 4,
                },
                "name": "global model, as measured through the noise",
                "line": {"color": ACCENT, "width": 3},
                "marker": {"size": 8, "color": ACCENT},
                "hovertemplate": "round %{x}: %{y:.3f}<extra></extra>",
            }
        )
    made = layout("round", f"{metric(facts).label} on held-out people")
    made["xaxis"].update(whole_rounds(numbers))
    made["yaxis"]["tickformat"] = ".2f"
    made["height"] = TALL
    return {"data": data, "layout": made}


def epsilon_by_round(facts: Mapping[str, Any]) -> Figure | None:
    """Privacy spent after each round. Sites with the same history share one line."""
    rounds = [r for r in facts.get("rounds") or () if r.get("epsilon")]
    if not rounds:
        return None
    histories: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for label in labels(facts):
        line = tuple(
            (r["number"], float(r["epsilon"][label])) for r in rounds if label in r["epsilon"]
        )
        if line:
            histories.setdefault(line, []).append(label)
    data: list[dict[str, Any]] = []
    # lines often overlap for most of their length: the widest lies below and stays visible
    ordered = sorted(histories.items(), key=lambda item: -len(item[1]))
    for i, (line, who) in enumerate(ordered):
        colour = SITE_COLOURS[i % len(SITE_COLOURS)]
        name = escape(words.names(who) if len(who) < 4 else ", ".join(who))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [n for n, _ in line],
                "y": [v for _, v in line],
                "name": name,
                "line": {"color": colour, "width": max(2, 7 - 2.5 * i), "shape": "hv"},
                "marker": {
                    "size": max(6, 11 - 2.5 * i),
                    "color": colour,
                    "symbol": MARKS[i % len(MARKS)],
                },
                "hovertemplate": f"{name}<br>after round %{{x}}: ε %{{y:.3f}}<extra></extra>",
            }
        )
    numbers = [r["number"] for r in rounds]
    made = layout("round", "ε spent, per person")
    made["xaxis"].update(whole_rounds(numbers))
    made["yaxis"]["rangemode"] = "tozero"
    made["height"] = TALL
    budget = facts.get("epsilon_budget")
    if budget is not None:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [min(numbers) - 0.4, max(numbers) + 0.4],
                "y": [budget, budget],
                "name": f"budget · {words.epsilon(budget)}",
                "line": {"color": "#b42318", "width": 2, "dash": "dash"},
                "hovertemplate": f"budget: ε {words.epsilon(budget)}<extra></extra>",
            }
        )
    return {"data": data, "layout": made}


def time_by_phase(facts: Mapping[str, Any]) -> Figure | None:
    """Wall seconds of every round, split into local training and everything else."""
    rounds = [r for r in facts.get("rounds") or () if r.get("seconds") is not None]
    if not rounds:
        return None
    numbers = [r["number"] for r in rounds]
    training = [min(float(r.get("training_seconds") or 0), float(r["seconds"])) for r in rounds]
    rest = [float(r["seconds"]) - t for r, t in zip(rounds, training, strict=True)]
    data = [
        _bar(numbers, training, "local training", ACCENT, "round %{x}: %{y:.2f} s training"),
        _bar(numbers, rest, "everything else", SOFT, "round %{x}: %{y:.2f} s everything else"),
    ]
    made = layout("round", "seconds")
    made["barmode"] = "stack"
    made["bargap"] = 0.25
    made["xaxis"].update(whole_rounds(numbers))
    return {"data": data, "layout": made}


def bytes_by_site(facts: Mapping[str, Any]) -> Figure | None:
    """Bytes each site sent over the whole job, as horizontal bars in roster order."""
    totals = dict.fromkeys(labels(facts), 0)
    for r in facts.get("rounds") or ():
        for label, n in (r.get("bytes") or {}).items():
            totals[label] = totals.get(label, 0) + int(n)
    if not any(totals.values()):
        return None
    names, values = [escape(n) for n in totals], list(totals.values())
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": names,
        "x": values,
        "text": [words.size(v) for v in values],
        "textposition": "auto",
        "marker": {"color": ACCENT},
        "hovertemplate": "%{y}: %{x:,} bytes<extra></extra>",
    }
    made = layout("bytes sent in the whole job", "")
    made["yaxis"].update({"autorange": "reversed", "type": "category", "showgrid": False})
    made["xaxis"].update({"showgrid": True, "tickformat": "~s"})
    made["showlegend"] = False
    made["bargap"] = 0.3
    return {"data": [bar], "layout": made}


def _bar(x: list[int], y: list[float], name: str, colour: str, hover: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "x": x,
        "y": y,
        "name": name,
        "marker": {"color": colour},
        "hovertemplate": hover + "<extra></extra>",
    }


def whole_rounds(numbers: list[int]) -> dict[str, Any]:
    """An axis of whole numbers from the smallest to the largest, with room at both ends."""
    low, high = min(numbers), max(numbers)
    return {
        "range": [low - 0.6, high + 0.6],
        "dtick": max(1, -(-(high - low + 1) // 20)),
        "tick0": low,
        "showgrid": False,
    }


def layout(x: str, y: str) -> dict[str, Any]:
    """The one look of all plots, with the titles of both axes."""
    axis = {
        "gridcolor": GRID,
        "linecolor": SOFT,
        "zerolinecolor": GRID,
        "automargin": True,
        "tickfont": {"color": MUTED},
    }
    return {
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', sans-serif",
            "size": 13,
            "color": INK,
        },
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "height": 340,
        "legend": {
            "orientation": "h",
            "y": 1.03,
            "yanchor": "bottom",
            "x": 0,
            "font": {"size": 12},
        },
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": SOFT, "font": {"color": INK}},
        "xaxis": {
            **axis,
            "title": {"text": x, "standoff": 8, "font": {"color": MUTED, "size": 13}},
        },
        "yaxis": {
            **axis,
            "title": {"text": y, "standoff": 8, "font": {"color": MUTED, "size": 13}},
        },
    }
