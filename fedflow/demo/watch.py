"""Shows a running job: rounds, what each site is doing, and what happened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fedflow.learning.metrics import verdict

_LEGS = {
    "order": ("training", "cyan"),
    "advert": ("training", "cyan"),
    "shares": ("training", "cyan"),
    "masked": ("masked update sent", "green"),
    "signed": ("survivors signed", "green"),
    "unmask": ("done", "green"),
    "decline": ("refused", "red"),
}


class EventTail:
    """Reads the job's event log as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The events written since the last call; a half-written line is left for the next."""
        try:
            with open(self._path) as file:
                file.seek(self._at)
                while (line := file.readline()).endswith("\n"):
                    self._at = file.tell()
                    yield json.loads(line)
        except FileNotFoundError:
            return


class Watch:
    """The terminal's picture of the demo: one bar, one line a site, notes above."""

    def __init__(self, console: Console, labels: list[str], rounds: int, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=34),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=rounds)
        self._sites: dict[str, tuple[str, str]] = dict.fromkeys(labels, ("starting", "dim"))
        self._live = Live(self._render(), console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Watch:
        if not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._quiet:
            self._live.stop()

    def note(self, text: str, style: str = "") -> None:
        """One lasting line above the bar."""
        if not self._quiet:
            self._console.print(Text(text, style=style))

    def stage(self, text: str) -> None:
        """What is going on now, in the bar's place for words."""
        self._bar.update(self._task, description=text)
        self._refresh()

    def site(self, label: str, state: str, style: str) -> None:
        """What one site is doing."""
        self._sites[label] = (state, style)
        self._refresh()

    def event(self, event: dict[str, Any]) -> None:
        """Take in one event of the job."""
        name = event["event"]
        if name == "site-present":
            self.site(event["site"], "joined", "green")
        elif name == "order":
            what = "training" if event["kind"] == "train" else "evaluating"
            self.stage(f"round {event['round']} · {what}")
            for label in event["expected"]:
                self._sites[label] = (what, "cyan")
        elif name == "message" and event["site"] and event["leg"] in _LEGS:
            self.site(event["site"], *_LEGS[event["leg"]])
        elif name == "round-done":
            self._bar.update(self._task, completed=event["number"])
            self.note(_round_line(event))
        elif name == "aborted":
            self.note(f"round {event['round']} aborted: {event['reason']}", "red")
        self._refresh()

    def _refresh(self) -> None:
        if not self._quiet:
            self._live.update(self._render())

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for label, (state, style) in self._sites.items():
            table.add_row(Text(f"  {label}"), Text(state, style=style))
        return Group(self._bar, table)


def _round_line(event: dict[str, Any]) -> str:
    gone = (event["dropped"], event["absent"], event["refused"])
    total = len(event["sites"]) + sum(len(sites) for sites in gone)
    line = f"round {event['number']:>2} · {len(event['sites'])} of {total} sites"
    if event["score"] is not None:
        own = event["personalised"], event["personalised_stderr"]
        line += f" · {verdict(event['metric'], event['score'], event['score_stderr'], *own)}"
    line += f" · {event['seconds']:.1f} s"
    for label in event["dropped"]:
        recovered = ", its masks recovered" if label in event["recovered"] else ""
        line += f" · {label} dropped{recovered}"
    for label in event["absent"]:
        line += f" · {label} away"
    if event["resting"]:
        line += f" · {len(event['resting'])} resting"
    for label, why in event["refused"].items():
        line += f" · {label} refused ({why})"
    return line
