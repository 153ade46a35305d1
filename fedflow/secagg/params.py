"""How many sites each step needs, from the cohort size and the colluders assumed.

With ``n`` sites in the cohort of which ``c`` may collude with the server, holders of shares can
answer for both secrets of one site at most ``(n - c) + 2c = n + c`` times (honest sites answer for
one of the two). A Shamir threshold with ``2t > n + c`` makes both unreachable together, and the
same bound on signatures makes the survivor set unique: two sets would need two signatures of one
honest site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fedflow.errors import Refusal

MAX_COHORT = 256
MIN_COHORT = 3


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The counts one cohort needs. Build with :meth:`for_cohort`.

    ``shares``: shares that recover a secret, and sites that must answer the last leg.
    ``signatures``: signatures on one survivor set before anything is revealed.
    ``survivors``: smallest survivor set a site unmasks.
    ``honest``: honest sites in any sum that is revealed, at least.
    """

    cohort: int
    colluders: int
    shares: int
    signatures: int
    survivors: int
    honest: int

    @classmethod
    def for_cohort(cls, n: int, colluders: int, minimum: int) -> Self:
        """Thresholds for ``n`` sites; Refusal with the numbers when they cannot protect anyone.

        ``minimum`` is the smallest number of sites in a sum by policy.
        """
        if not MIN_COHORT <= n <= MAX_COHORT:
            raise Refusal(
                "cohort-size",
                f"a cohort of {n} sites; secure aggregation takes {MIN_COHORT} to {MAX_COHORT}",
            )
        if minimum < 1 or colluders < 0:
            raise Refusal("bad-thresholds", "the minimum starts at 1 and the colluders at 0")
        if minimum > n:
            raise Refusal(
                "cohort-too-small", f"a cohort of {n} sites; this site requires {minimum}"
            )
        shares = (n + colluders) // 2 + 1
        survivors = max(shares, minimum)
        if colluders >= n or survivors - colluders < 2:
            raise Refusal(
                "too-many-colluders",
                f"with {colluders} of {n} sites colluding, a sum could hold one honest site only;"
                f" at most {n - 2} can be tolerated",
            )
        return cls(n, colluders, shares, survivors, survivors, survivors - colluders)

    @property
    def dropouts(self) -> int:
        """Sites that may vanish before the sum is lost."""
        return self.cohort - self.survivors
