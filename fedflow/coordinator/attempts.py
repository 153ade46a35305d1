"""How often one sum was ordered, and whether it may be ordered again: across restarts, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedflow.wire.messages import Kind

#: Orders of one sum that may end with their coordinator. Sites may have paid for each of them, so
#: a coordinator that dies at the same place every time must come to an end.
MOST_INTERRUPTED = 10


@dataclass
class Tries:
    """Attempts at one sum: ``made`` orders, of which ``aborted`` ended by the protocol's rules.

    The others were cut short with the coordinator. They are counted apart, so that a restart does
    not use up what a round may try; but they are counted.
    """

    round: int
    kind: int
    made: int = 0
    aborted: int = 0

    @property
    def interrupted(self) -> int:
        """Orders that ended with their coordinator."""
        return self.made - self.aborted


class Attempts:
    """The attempts at the sum that is under way. ``known`` are those a checkpoint names."""

    def __init__(self, known: Tries | None = None) -> None:
        self.tries = known

    def _of(self, number: int, kind: Kind) -> Tries:
        tries = self.tries
        if tries is None or (tries.round, tries.kind) != (number, int(kind)):
            tries = self.tries = Tries(number, int(kind))
        return tries

    def ordered(self, number: int, kind: Kind, attempt: int) -> None:
        """An order with this attempt's number is out, or was found."""
        tries = self._of(number, kind)
        tries.made = max(tries.made, attempt)

    def aborted(self, number: int, kind: Kind) -> None:
        """The last order ended without a sum, by the protocol's rules."""
        self._of(number, kind).aborted += 1

    def numbers(self, number: int, kind: Kind, most: int) -> Iterator[int]:
        """Numbers for the attempts to come, until ``most`` were aborted or too many cut short."""
        while True:
            tries = self._of(number, kind)
            if tries.aborted >= most or tries.interrupted >= MOST_INTERRUPTED:
                return
            yield tries.made + 1
