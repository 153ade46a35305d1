"""Numbers in the form a person reads them. A missing value is always an en dash."""

from __future__ import annotations

import math

MISSING = "–"


def auc(value: float | None) -> str:
    """Three decimals: differences below 0.001 are noise in every workload we ship."""
    return MISSING if value is None else f"{value:.3f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, always with its sign, and with a real minus."""
    if value is None:
        return MISSING
    return f"{value:+.{digits}f}".replace("-", "−")


def epsilon(value: float | None) -> str:
    """Privacy loss with two decimals, rounded up so that it never looks smaller than it is."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "unbounded"
    return f"{_up(value, 100):.2f}"


def left(value: float | None) -> str:
    """Remaining budget with two decimals, rounded down so that it never looks larger than it is."""
    if value is None:
        return MISSING
    return f"{max(0.0, int(value * 100 + 1e-9) / 100):.2f}"


def delta(value: float | None) -> str:
    """A failure probability as people write it: ``10⁻⁵`` or ``2·10⁻⁶``."""
    if value is None:
        return MISSING
    mantissa, _, power = f"{value:.0e}".partition("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    if float(f"{mantissa}e{power}") != value:
        return f"{value:g}"
    return f"10{raised}" if mantissa == "1" else f"{mantissa}·10{raised}"


def seconds(value: float | None) -> str:
    """A duration: milliseconds, seconds or minutes, whichever is readable."""
    if value is None:
        return MISSING
    if round(value, 3) < 1:
        return f"{value * 1000:.0f} ms"
    if round(value, 1) < 120:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60):02d} s"


def size(value: float | None) -> str:
    """Bytes in decimal units, as network bills count them."""
    if value is None:
        return MISSING
    for unit in ("B", "kB", "MB"):
        digits = 0 if unit == "B" else 1
        if round(value, digits) < 1000:
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def count(number: int, noun: str, plural: str = "") -> str:
    """A count with its noun: ``1 site``, ``6 sites``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def names(items: list[str]) -> str:
    """A list of names as English: ``a``, ``a and b``, ``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _up(value: float, scale: int) -> float:
    whole = int(value * scale)
    return (whole + (value * scale - whole > 1e-9)) / scale
