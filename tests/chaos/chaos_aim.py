"""When to kill, and whom: uniformly at random, or just after something durable happened."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from chaos_inotify import Seen
from chaos_world import World

#: How often each is hit, relative to each other. Starting a Prefect server takes the longest.
WEIGHTS = {
    "coordinator": 5,
    "agent": 5,
    "trainer": 4,
    "worker": 3,
    "server": 2,
    "relay": 4,
    "postgres": 2,
    "redis": 2,
}
AIMED = 0.6  # share of kills that wait for an event
STORMS = 0.08  # share that take two or three at once
#: Delay after the event, seconds, log-uniform: from the next system call to the next message.
NEAR, FAR = 1e-5, 3e-2
#: How long an aimed kill waits for its event; it falls anyway after that.
EVENT_SECONDS = 6.0
#: Everything that is aimed at, each as often as every other, however often it happens.
MOMENTS = (
    *(f"up {leg}" for leg in ("advert", "shares", "vector", "masked", "signed", "unmask")),
    *(f"down {leg}" for leg in ("roster", "delivery", "survivors", "consistency")),
    *("order", "sum", "transcript", "blobs", "end", "hello", "countersign"),
    *("writing up vector", "writing up masked", "writing order", "writing transcript"),
    *("writing sum", "writing blobs", "writing end"),
    *("ledger begun", "ledger committed", "anchors begun", "anchors committed"),
    *("spool", "spool removed", "history", "checkpoint begun", "checkpoint", "started"),
)


@dataclass(frozen=True)
class Moment:
    """Something that happened, and the unit that did it ("" for nobody in particular)."""

    what: str
    owner: str = ""


def moment_of(seen: Seen, world: World) -> Moment | None:
    """What a path's appearing means; None for what is of no interest."""
    path = seen.path
    if path.startswith(f"{world.store}/"):
        return None if seen.gone else _in_exchange(path[len(str(world.store)) + 1 :], world)
    sites = f"{world.folder}/sites/"
    if path.startswith(sites):
        label, _, rest = path[len(sites) :].partition("/")
        if rest == "ledger.sqlite-journal":
            return Moment("ledger committed" if seen.gone else "ledger begun", label)
        if rest.startswith("anchors.sqlite-journal"):
            return Moment("anchors committed" if seen.gone else "anchors begun", label)
        if rest.startswith("spool/"):
            return Moment("spool removed" if seen.gone else "spool", label)
        if rest.startswith("history/"):
            return None if seen.gone else Moment("history", label)
        return None
    if path.startswith(f"{world.coordinator}/jobs/") and not seen.gone:
        if path.endswith("/checkpoint.json"):
            return Moment("checkpoint", "coordinator")
        if "/checkpoint" in path:
            return Moment("checkpoint begun", "coordinator")
    return None


def _in_exchange(relative: str, world: World) -> Moment | None:
    parts = relative.split("/")
    if len(parts) < 3 or parts[0] != "jobs":
        return None
    writing = "writing " if parts[-1].startswith(".") else ""
    if parts[2] != "rounds":
        owner = ""
        name = parts[-1].lstrip(".").replace(".", "-").split("-")[0]
        if parts[2] in ("hello", "countersign") and name.isdigit():
            owner = _site(name, world)
        elif parts[2].lstrip(".").startswith(("end", "blobs")):
            owner = "coordinator"
        return Moment(writing + parts[2].lstrip(".").split(".")[0], owner)
    if len(parts) < 5:
        return None
    if parts[4] == "up" and len(parts) >= 7:
        number = parts[6].lstrip(".").split(".")[0]
        if len(parts) == 7 and parts[5] == "vector":
            return None  # only the folder
        return Moment(f"{writing}up {parts[5]}", _site(number, world))
    if parts[4] == "down" and len(parts) >= 7:
        return Moment(f"{writing}down {parts[5]}", "coordinator")
    name = parts[4].lstrip(".").split(".")[0]
    if name in ("order", "transcript") or (name == "sum" and len(parts) == 6):
        return Moment(writing + name, "coordinator")
    return None


def _site(number: str, world: World) -> str:
    index = int(number) if number.isdigit() else -1
    return world.labels[index] if 0 <= index < len(world.labels) else ""


@dataclass
class Shot:
    """One planned kill: of ``kinds``, at ``at`` (monotonic), or as soon as ``what`` happens."""

    kinds: tuple[str, ...]
    at: float
    what: str = ""
    owner_too: bool = False  # the unit that did it, whatever the first kind is


class Aim:
    """Draws shots. All randomness is of one seed, so that a run can be repeated roughly."""

    def __init__(self, seed: int, targets: list[str], every: float) -> None:
        self.random = random.Random(seed)
        self._targets, self._every = targets, every

    def _kind(self) -> str:
        return self.random.choices(self._targets, [WEIGHTS[t] for t in self._targets])[0]

    def shot(self, now: float) -> Shot:
        """The next one, drawn now."""
        many = self.random.choice((2, 2, 3)) if self.random.random() < STORMS else 1
        kinds = tuple(self._kind() for _ in range(many))
        wait = max(0.02, self.random.expovariate(1.0 / self._every))
        if self.random.random() >= AIMED:
            return Shot(kinds, now + wait)
        return Shot(kinds, now + wait, self.random.choice(MOMENTS), self.random.random() < 0.5)

    def delay(self) -> float:
        """Seconds from a moment to its kill."""
        return math.exp(self.random.uniform(math.log(NEAR), math.log(FAR)))

    def restart(self) -> float:
        """Seconds until what was killed starts again: mostly few, now and then an outage."""
        draw = self.random.random()
        return self.random.uniform(1.0, 4.0) if draw < 0.1 else self.random.uniform(0.0, 0.4)
