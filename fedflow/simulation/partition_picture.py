"""Who holds what: a bubble for each site and label, its area the rows; plain SVG, no library.

For data that one party deals to simulated sites (:mod:`fedflow.simulation.partition`). Such counts
are private wherever sites are real.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse

WIDE, LEFT, TOP, GAP, MOST_HIGH = 230.0, 40.0, 46.0, 16.0, 300.0
INK, MUTED, LINE, FILL = "#1d2733", "#5b6b7b", "#e6ebf0", "#0072b2"


@dataclass(frozen=True)
class Panel:
    """One way to deal: ``counts`` int64[sites, labels], see `partition.holdings`, with names."""

    title: str
    counts: NDArray[np.int64]
    sites: Sequence[str]
    labels: Sequence[str]

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.sites), len(self.labels)) or not self.counts.size:
            raise Misuse(f"counts {self.counts.shape} are not of these sites and labels")
        if self.counts.min() < 0:
            raise Misuse("a site cannot hold fewer rows than none")


def drawn(panels: Sequence[Panel]) -> str:
    """The SVG of all panels, side by side. Each has bubbles of its own scale."""
    width = len(panels) * WIDE + GAP
    height = TOP + MOST_HIGH + 40.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
        f' width="{width:g}" height="{height:g}" font-family="sans-serif" font-size="10">',
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({GAP + number * WIDE:g} 0)">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> list[str]:
    sites, labels = panel.counts.shape
    across, down = (WIDE - LEFT - GAP) / labels, MOST_HIGH / sites
    largest = max(int(panel.counts.max()), 1)
    radius = 0.5 * min(across, max(down, 14.0), 34.0)
    out = [
        f'<text x="0" y="16" font-size="12" font-weight="bold" fill="{INK}">'
        f"{escape(panel.title)}</text>",
        f'<text x="0" y="31" fill="{MUTED}">largest bubble: {largest:,} rows</text>',
    ]
    for site, name in enumerate(panel.sites):
        y = TOP + (site + 0.5) * down
        out.append(f'<path d="M{LEFT:g} {y:.1f}H{WIDE - GAP:g}" stroke="{LINE}"/>')
        out.append(
            f'<text x="{LEFT - 5:g}" y="{y + 3.5:.1f}" text-anchor="end" fill="{MUTED}">'
            f"{escape(name)}</text>"
        )
        for label in range(labels):
            count = int(panel.counts[site, label])
            if count:
                x = LEFT + (label + 0.5) * across
                size = max(radius * math.sqrt(count / largest), 0.6)
                out.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.2f}" fill="{FILL}"'
                    f' fill-opacity="0.8"><title>{escape(name)}, {escape(panel.labels[label])}:'
                    f" {count:,} rows</title></circle>"
                )
    for label, name in enumerate(panel.labels):
        x = LEFT + (label + 0.5) * across
        out.append(
            f'<text x="{x:.1f}" y="{TOP + MOST_HIGH + 14:g}" text-anchor="middle" fill="{MUTED}">'
            f"{escape(name)}</text>"
        )
    return out
