"""What a release cost, written so that it still means the same in ten years.

A :class:`ReleaseEvent` goes into signed ledgers. Its meaning never changes: a mechanism with a new
meaning gets a new ``kind``, and readers know only the kinds listed here (an allow-list; nothing is
ever looked up by a name found in a file). Numbers are those the mechanism guarantees, rounded in
the direction that costs more.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from absl import logging as absl_logging

from fedflow.errors import Misuse, Violation

if TYPE_CHECKING:
    import dp_accounting

# absl, which dp-accounting loads, closes the stream that was sys.stderr at its import as soon as
# another library configures logging, as Prefect does. Under a test runner that is the runner's own.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__
# It also warns of every Renyi order at which a series does not converge. Such an order prices at
# infinity and is never chosen; people who calibrate a plan would read dozens of these lines.
absl_logging.set_verbosity(absl_logging.ERROR)

_SUMMED = ("summed-gaussian", "poisson-summed-gaussian")
_SAMPLED = ("poisson-gaussian", "poisson-summed-gaussian")
KINDS = ("gaussian", "poisson-gaussian", *_SUMMED)
UNITS = ("record", "person", "site")
ADJACENCIES = ("zero-out",)
MAX_EVENT_BYTES = 512
_MOST_SITES = 1 << 16
NOISE_RANGE = (1e-3, 1e9)
"""Beyond it accountants overflow; below it nothing is protected, above it nothing is learnt."""


@dataclass(frozen=True)
class ReleaseEvent:
    """One release, as a mechanism an accountant can price.

    * ``kind`` "poisson-gaussian": ``steps`` times, each unit joins a batch independently with
      probability ``sample_rate``, and Gaussian noise is added to the batch's sum.
      "gaussian": the same without sampling; ``sample_rate`` is then exactly 1. In both the site
      adds all the noise itself, whatever others do.
      "summed-gaussian", "poisson-summed-gaussian": the same mechanisms, on a sum over sites of
      which each adds an equal share of discrete Gaussian noise. The sum opens for no fewer than
      ``minimum`` sites, of which ``colluders`` may take their share away again.
    * ``noise_multiplier``: noise standard deviation divided by the L2 sensitivity to one unit; of a
      summed kind that of ``minimum - colluders`` shares, the least any opened sum holds.
    * ``unit``: what is protected as a whole: one "record", all records of one "person", or all of
      one "site".
    * ``adjacency``: "zero-out" replaces one unit by nothing while the number of units stays public
      (dp-accounting's REPLACE_SPECIAL).

    Misuse when a field is outside its range.
    """

    kind: str
    sample_rate: float
    noise_multiplier: float
    steps: int
    unit: str = "person"
    adjacency: str = "zero-out"
    minimum: int = 0
    colluders: int = 0

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise Misuse(f"release event: {problem}", code="bad-event")

    def canonical(self) -> str:
        """The one JSON text of this event: sorted keys, no spaces."""
        raw = {name: getattr(self, name) for name in _fields(self.kind)}
        return json.dumps(raw, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_canonical(cls, text: str) -> ReleaseEvent:
        """The event a ledger holds; Violation ``bad-event`` for anything but canonical text."""
        if len(text) > MAX_EVENT_BYTES:
            raise Violation("bad-event", "release event is too long")
        try:
            raw: Any = json.loads(text)
        except (ValueError, RecursionError):
            raise Violation("bad-event", "release event is not JSON") from None
        if not isinstance(raw, dict) or raw.get("kind") not in KINDS:
            raise Violation("bad-event", f"release event is not of a kind in {KINDS}")
        if set(raw) != set(_fields(raw["kind"])):
            raise Violation("bad-event", f"release event needs exactly {_fields(raw['kind'])}")
        try:
            event = cls(**raw)
        except Misuse as err:
            raise Violation("bad-event", err.message) from None
        if event.canonical() != text:
            raise Violation("bad-event", "release event is valid but not in canonical form")
        return event

    def to_dp_event(self) -> dp_accounting.DpEvent:
        """The same mechanism in dp-accounting's vocabulary."""
        import dp_accounting  # here, as in fedflow.privacy.accounting

        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sample_rate < 1.0:
            event = dp_accounting.PoissonSampledDpEvent(self.sample_rate, event)
        return dp_accounting.SelfComposedDpEvent(event, self.steps)

    def repeated(self, times: int) -> ReleaseEvent:
        """This event ``times`` over: the same mechanism with ``times`` as many steps."""
        return dataclasses.replace(self, steps=self.steps * times)

    @property
    def summed(self) -> bool:
        """Whether the noise comes in shares of all the sites in the sum."""
        return self.kind in _SUMMED

    def settled(self, survivors: int) -> ReleaseEvent:
        """This event once the sum it went into is known to be over ``survivors`` sites.

        Every honest survivor's share counts, so a summed kind becomes cheaper: its noise multiplier
        grows by ``sqrt((survivors - colluders) / (minimum - colluders))``. Others stay as they are.
        Misuse when fewer survived than a sum opens for.
        """
        if not self.summed:
            return self
        if survivors < self.minimum:
            raise Misuse(f"a sum over {survivors} sites never opens, the least is {self.minimum}")
        gain = (survivors - self.colluders) / (self.minimum - self.colluders)
        noise = min(self.noise_multiplier * math.sqrt(gain), NOISE_RANGE[1])
        return dataclasses.replace(self, noise_multiplier=noise)


def _fields(kind: str) -> tuple[str, ...]:
    """What the text of such an event holds. A text of the first two kinds has no cohort."""
    names = tuple(field.name for field in dataclasses.fields(ReleaseEvent))
    return names if kind in _SUMMED else names[:6]


def merged(events: list[ReleaseEvent]) -> list[ReleaseEvent]:
    """The same composition with equal mechanisms joined: order plays no part in its price."""
    steps: dict[ReleaseEvent, int] = {}
    for event in events:
        one = dataclasses.replace(event, steps=1)
        steps[one] = steps.get(one, 0) + event.steps
    return [dataclasses.replace(one, steps=n) for one, n in steps.items()]


def _problem(event: ReleaseEvent) -> str:
    if event.kind not in KINDS:
        return f"kind {event.kind!r} is not one of {KINDS}"
    if event.unit not in UNITS:
        return f"unit {event.unit!r} is not one of {UNITS}"
    if event.adjacency not in ADJACENCIES:
        return f"adjacency {event.adjacency!r} is not one of {ADJACENCIES}"
    if type(event.sample_rate) is not float or not 0.0 < event.sample_rate <= 1.0:
        return f"sample_rate {event.sample_rate!r} is not a number above 0 and at most 1"
    if event.kind not in _SAMPLED and event.sample_rate != 1.0:
        return f"kind {event.kind} does not sample, its sample_rate is 1.0"
    noise = event.noise_multiplier
    if type(noise) is not float or not NOISE_RANGE[0] <= noise <= NOISE_RANGE[1]:
        return f"noise_multiplier {noise!r} is not a number from {NOISE_RANGE[0]} to 1e9"
    if type(event.steps) is not int or not 1 <= event.steps < 1 << 40:
        return f"steps {event.steps!r} is not a whole number of at least 1"
    return _cohort_problem(event)


def _cohort_problem(event: ReleaseEvent) -> str:
    minimum, colluders = event.minimum, event.colluders
    if type(minimum) is not int or type(colluders) is not int:
        return "minimum and colluders are whole numbers"
    if not event.summed:
        return f"kind {event.kind} has no cohort" if minimum or colluders else ""
    if not 0 <= colluders <= minimum - 2 or minimum > _MOST_SITES:
        return f"minimum {minimum} with {colluders} colluders is no cohort to hide in"
    return ""
