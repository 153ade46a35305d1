"""How alike a model serves the sites: a noised count of sites by score, as a small histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH = 24


def newest_spread(rounds: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What was counted last, as a round's record has it; empty where a plan counts no sites."""
    return next((r["fairness"] for r in reversed(rounds) if r.get("fairness")), {})


def spread_lines(spread: Mapping[str, Any]) -> list[str]:
    """One line a bin: its scores, a bar, the number of sites; then what the noise does to it.

    ``spread`` is the ``fairness`` of a round's record; no lines for an empty one.
    """
    if not spread:
        return []
    (low, high), counts, error = spread["between"], spread["sites"], float(spread["stderr"])
    step, most = (high - low) / len(counts), max(1.0, *counts)
    lines = [
        f"{low + at * step:.2f} to {low + (at + 1) * step:.2f}"
        f"  {'█' * round(_WIDTH * max(0.0, count) / most):<{_WIDTH}} {count:6.1f} ± {error:.1f}"
        for at, count in enumerate(counts)
    ]
    largest = max(counts)
    if largest < 2 * error:
        return [*lines, "within the noise: for so few sites this tells nothing"]
    return [*lines, "± is the privacy noise; a score outside counts in the nearest bin"]
