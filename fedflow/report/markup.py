"""The smallest set of helpers to write HTML that cannot be injected into.

Every string that comes from outside goes through :func:`text`. Functions returning :class:`Html`
have done so; plain strings have not and are escaped wherever they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is already safe markup."""

    __slots__ = ()


def text(value: object) -> Html:
    """``value`` as markup: unchanged when it is already :class:`Html`, escaped otherwise."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    """Several pieces, one after the other."""
    return Html("".join(text(p) for p in parts))


def tag(name: str, *content: object, cls: str = "") -> Html:
    """One element with an optional class and its content."""
    attribute = f' class="{escape(cls)}"' if cls else ""
    return Html(f"<{name}{attribute}>{join(content)}</{name}>")


def pill(content: object, tone: str) -> Html:
    """A small coloured label; ``tone`` is good, bad or warn."""
    return tag("span", content, cls=f"pill {tone}")


def meter(share: float) -> Html:
    """A small bar filled to ``share`` (clamped to 0..1)."""
    percent = 100 * min(1.0, max(0.0, share))
    return Html(f'<span class="meter"><i style="width:{percent:.1f}%"></i></span>')


def table(
    head: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]], ours: Sequence[int] = ()
) -> Html:
    """A table in a card. ``head``: (title, class) per column; rows in ``ours`` stand out."""
    body = []
    for i, row in enumerate(rows):
        cells = join(tag("td", c, cls=k) for c, (_, k) in zip(row, head, strict=True))
        body.append(tag("tr", cells, cls="ours" if i in ours else ""))
    titles = join(tag("th", title, cls=kind) for title, kind in head)
    inner = tag("table", tag("thead", tag("tr", titles)), tag("tbody", *body))
    return tag("div", inner, cls="card")
