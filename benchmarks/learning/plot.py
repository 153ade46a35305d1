"""The curves of the learning benchmark as one picture: scores by rounds or seconds; plain SVG.

python -m benchmarks.learning.plot ROWS.json... > docs/img/learning.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.learning.straggler import TARGET

WIDE, HIGH, LEFT, TOP, BOTTOM = 420, 270, 40, 34, 40
# Okabe-Ito, told apart by readers with any colour vision
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#444444")
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Curves that are compared: row names and what to call them; ``low`` is where y begins."""

    title: str
    across: str
    lines: Mapping[str, str]
    low: float
    target: float | None = None


_ROUNDS = {"fedsgd": "FedSGD", "fedavg": "FedAvg, E=1", "fedavg_e5": "FedAvg, E=5"}
_METHODS = {"fedavg": "FedAvg", "fedprox": "FedProx", "scaffold": "SCAFFOLD"}
_METHODS |= {"fedadam": "FedAdam", "fedyogi": "FedYogi"}
_ACCURACY = "accuracy on the test images, %"
PANELS = (
    *(
        Panel(
            f"MNIST {network}, 100 sites, {words}",
            f"rounds; {_ACCURACY}",
            {f"{name}_rounds{suffix}_{how}": label for name, label in _ROUNDS.items()},
            low,
            target,
        )
        for network, suffix, low, target in (("2NN", "", 80.0, 97.0), ("CNN", "99", 90.0, 99.0))
        for how, words in (("iid", "IID"), ("shards", "two labels a site"))
    ),
    Panel(
        "MNIST at 50 sites, Dirichlet 0.1, mean of seeds",
        f"rounds; {_ACCURACY}",
        {f"{name}_dirichlet01": label for name, label in _METHODS.items()},
        40.0,
    ),
    Panel(
        "RAND HIE, one of six sites ten times slower",
        "seconds; AUC x 100 on held-out persons",
        {"synchronous_seconds": "waits for all", "asynchronous_seconds": "FedBuff"},
        55.0,
        TARGET,
    ),
)


def drawn(curves: Mapping[str, Curve]) -> str:
    """The SVG of all panels that ``curves``, by row name, have something for."""
    panels = [panel for panel in PANELS if any(curves.get(name) for name in panel.lines)]
    width, height = WIDE * min(2, max(1, len(panels))), HIGH * -(-len(panels) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        parts.append(f'<g transform="translate({WIDE * (i % 2)} {HIGH * (i // 2)})">')
        parts += _panel(panel, {name: curves[name] for name in panel.lines if curves.get(name)})
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, curves: Mapping[str, Curve]) -> list[str]:
    most = max(x for curve in curves.values() for x, _ in curve)
    high = max(y for curve in curves.values() for _, y in curve) + 0.5

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDE - LEFT - 16) * x / most
        return f"{across:.1f} {_level(max(y, panel.low), panel.low, high):.1f}"

    out = [f'<text x="{LEFT}" y="{TOP - 14}" font-weight="bold">{panel.title}</text>']
    for i in range(5):
        value, x = panel.low + (high - panel.low) * i / 4, most * i / 4
        y = _level(value, panel.low, high)
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDE - 16}" stroke="#e6ebf0"/>')
        out.append(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
        at = place(x, panel.low).split()[0]
        out.append(f'<text x="{at}" y="{HIGH - 22}" text-anchor="middle">{x:.4g}</text>')
    out.append(f'<text x="{WIDE - 16}" y="{HIGH - 8}" text-anchor="end">{panel.across}</text>')
    if panel.target is not None:
        y = _level(panel.target, panel.low, high)
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDE - 16}" stroke="#444" stroke-dasharray="5 4"/>')
    for i, (name, label) in enumerate(panel.lines.items()):
        if name not in curves:
            continue
        colour, low = COLOURS[i % len(COLOURS)], HIGH - BOTTOM - 14 * len(panel.lines)
        line = "L".join(place(x, y) for x, y in curves[name])
        out.append(f'<path d="M{line}" stroke="{colour}" stroke-width="1.5" fill="none"/>')
        out.append(
            f'<text x="{WIDE - 22}" y="{low + 14 * i + 4}" text-anchor="end" fill="{colour}">'
            f"{label}</text>"
        )
    return out


def _level(value: float, low: float, high: float) -> float:
    return TOP + (HIGH - TOP - BOTTOM) * (high - value) / (high - low)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the picture of the rows in these files, each what ``--json`` printed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.learning.plot",
        description="Draw curves that were measured earlier, as SVG to standard output.",
        epilog="example: python -m benchmarks.learning.plot rows.json > learning.svg",
    )
    parser.add_argument("rows", nargs="+", type=argparse.FileType(), help="what --json printed")
    files = parser.parse_args(arguments).rows
    rows = [row for file in files for row in json.load(file)["rows"]]
    print(drawn({row["name"]: row.get("curve", []) for row in rows}), end="")


if __name__ == "__main__":
    main()
