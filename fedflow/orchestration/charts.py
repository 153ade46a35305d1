"""Small pictures for artifacts, as SVG text: no script, nothing fetched, readable on any ground."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fedflow.coordinator.records import RoundRecord
from fedflow.learning.metrics import METRICS
from fedflow.report.plots import ACCENT, GRID, INK, MUTED, SOFT, WARM

_WIDTH, _LEFT, _RIGHT = 760, 56, 744
_MOST_POINTS = 400


def rounds_chart(title: str, records: Sequence[RoundRecord], sites: int) -> str:
    """The noised score by round above the number of sites in each sum.

    Bars through the points are two standard errors of the privacy noise. ``sites`` is how many the
    job has.
    """
    shown = thinned(records)
    last = max((r.number for r in shown), default=1)
    parts = [_text(_LEFT, 22, title, 15, INK, weight="600")]
    top = 40
    if any(r.score is not None for r in shown):
        parts += _scores(shown, last, top, 170)
        top += 170 + 46
    parts += _attendance(shown, last, sites, top, 80)
    height = top + 80 + 44
    parts += _rounds_axis(last, top + 80)
    return _page(height, parts)


def bars_chart(title: str, rows: Sequence[tuple[str, Sequence[float]]], names: list[str]) -> str:
    """One stacked horizontal bar per row; ``names`` say what the pieces are, in order."""
    colours = (ACCENT, WARM, SOFT, "#cc79a7")
    most = max((sum(values) for _, values in rows), default=1.0) or 1.0
    parts = [_text(16, 22, title, 15, INK, weight="600")]
    for i, name in enumerate(names):
        parts.append(_rect(16 + 150 * i, 34, 12, 12, colours[i % 4]))
        parts.append(_text(34 + 150 * i, 45, name, 12, MUTED))
    for i, (label, values) in enumerate(rows):
        y, x = 62 + 26 * i, 190.0
        parts.append(_text(180, y + 14, label, 12, INK, anchor="end"))
        for j, value in enumerate(values):
            width = 500 * value / most
            if width:
                parts.append(_rect(x, y, width, 18, colours[j % 4]))
            x += width
        parts.append(_text(x + 6, y + 14, f"{sum(values):g}", 12, MUTED))
    return _page(62 + 26 * len(rows) + 16, parts)


def columns_chart(title: str, rows: Sequence[tuple[str, float, Sequence[float]]]) -> str:
    """One line per column: the share of missing values, and a box from quantile to quantile.

    A row is a label, that share, and three places from 0 to 1 on the column's public range (low,
    middle, high), or none.
    """
    parts = [_text(16, 22, title, 15, INK, weight="600")]
    parts.append(_text(190, 46, "missing", 12, MUTED))
    parts.append(_text(400, 46, "1 %, 50 % and 99 % of the rest, on the public range", 12, MUTED))
    for i, (label, missing, places) in enumerate(rows):
        y = 62 + 26 * i
        parts.append(_text(180, y + 14, label, 12, INK, anchor="end"))
        parts.append(_rect(190, y, 130 * min(missing, 1.0), 18, WARM))
        parts.append(_text(196 + 130 * min(missing, 1.0), y + 14, f"{missing:.1%}", 12, MUTED))
        if places:
            low, middle, high = (400 + 340 * min(max(place, 0.0), 1.0) for place in places)
            parts.append(_line(400, y + 9, 740, y + 9, GRID))
            parts.append(_rect(low, y + 3, max(high - low, 1.0), 12, SOFT))
            parts.append(_line(middle, y, middle, y + 18, ACCENT, 2))
    return _page(62 + 26 * len(rows) + 16, parts)


def thinned(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    """At most a few hundred of the rounds, evenly spread; scored ones and the last are kept."""
    if len(records) <= _MOST_POINTS:
        return list(records)
    every = len(records) // _MOST_POINTS + 1
    scored = [i for i, r in enumerate(records) if r.score is not None]
    scored = scored[:: len(scored) // _MOST_POINTS + 1]
    keep = {*range(0, len(records), every), *scored, len(records) - 1}
    return [records[i] for i in sorted(keep)]


def _scores(shown: list[RoundRecord], last: int, top: float, height: float) -> list[str]:
    points = [(r.number, r.score, r.score_stderr or 0.0) for r in shown if r.score is not None]
    metric = next(r.metric for r in shown if r.score is not None)
    low = min(score - 2 * error for _, score, error in points)
    high = max(score + 2 * error for _, score, error in points)
    room = max((high - low) * 0.06, 0.005)
    low = max(0.0, low - room)
    high = high + room if metric == "mse" else min(1.0, high + room)

    def y(score: float) -> float:
        share = (min(max(score, low), high) - low) / ((high - low) or 1.0)
        return top + height * (1 - share)

    parts = []
    for i in range(4):
        value = low + (high - low) * i / 3
        parts.append(_line(_LEFT, y(value), _RIGHT, y(value), GRID))
        parts.append(_text(_LEFT - 8, y(value) + 4, f"{value:.3f}", 11, MUTED, anchor="end"))
    for number, score, error in points:
        x = _x(number, last)
        parts.append(_line(x, y(score - 2 * error), x, y(score + 2 * error), SOFT, 3))
    path = " ".join(f"{_x(n, last):.1f},{y(s):.1f}" for n, s, _ in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{ACCENT}" stroke-width="2"/>')
    for number, score, _ in points:
        parts.append(
            f'<circle cx="{_x(number, last):.1f}" cy="{y(score):.1f}" r="3.5" fill="{ACCENT}"/>'
        )
    note = f"{METRICS[metric].label}, noised; bars: two standard errors of the privacy noise"
    return [*parts, _text(_LEFT, top + height + 18, note, 11, MUTED)]


def _attendance(
    shown: list[RoundRecord], last: int, sites: int, top: float, height: float
) -> list[str]:
    parts = [_line(_LEFT, top, _RIGHT, top, GRID), _line(_LEFT, top + height, _RIGHT, top + height)]
    parts.append(_text(_LEFT - 8, top + 4, str(sites), 11, MUTED, anchor="end"))
    parts.append(_text(_LEFT - 8, top + height + 4, "0", 11, MUTED, anchor="end"))
    width = max(1.0, min(26.0, (_RIGHT - _LEFT) / max(last, 1) * 0.7))
    for r in shown:
        x = _x(r.number, last) - width / 2
        present = height * len(r.sites) / max(sites, 1)
        missing = height * (len(r.dropped) + len(r.refused)) / max(sites, 1)
        parts.append(_rect(x, top + height - present, width, present, SOFT))
        if missing:
            parts.append(_rect(x, top + height - present - missing, width, missing, WARM))
    note = "sites in each round's sum; in orange those that refused or were lost"
    return [*parts, _text(_LEFT, top + height + 34, note, 11, MUTED)]


def _rounds_axis(last: int, y: float) -> list[str]:
    marks = list(range(1, last + 1))
    if last > 12:
        marks = sorted({1, *(round(last * i / 5) for i in range(1, 6))})
    return [_text(_x(m, last), y + 16, str(m), 11, MUTED, anchor="middle") for m in marks]


def _x(number: int, last: int) -> float:
    inner = _RIGHT - _LEFT - 40
    return _LEFT + 20 + inner * ((number - 1) / (last - 1) if last > 1 else 0.5)


def _page(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}"'
        f' width="{_WIDTH}" height="{height:.0f}" font-family="system-ui, sans-serif">'
        f'<rect width="100%" height="100%" rx="6" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    size: int,
    colour: str,
    *,
    anchor: str = "start",
    weight: str = "400",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"'
        f' text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = MUTED, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        f' stroke="{colour}" stroke-width="{width}"/>'
    )


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
    )
