"""Where trees may divide the columns of RAND HIE, from what the columns mean.

In the columns' own units (``fedflow/data/randhie.md``): dollars and people of logarithms, grades of
school, points of health indices. Chosen by their meaning; none is computed from a site's data.
"""

from __future__ import annotations

import math


def _logs(*values: float) -> tuple[float, ...]:
    return tuple(math.log(value) for value in values)


_YES = (0.5,)
_POINTS = (50.0, 60.0, 70.0, 80.0, 90.0)
#: column -> ascending cuts; a row is on the right when its value is above.
CUTS: dict[str, tuple[float, ...]] = {
    "logc": _logs(5, 36, 70),  # per cent of coinsurance + 1: plans of 0, 25, 50 and 95
    "idp": _YES,
    "lpi": _logs(8, 100, 400, 700),
    "fmde": _logs(5, 500, 1750),
    "physlm": _YES,
    "disea": (5.0, 8.0, 11.0, 14.0, 18.0, 24.0),
    "hlthg": _YES,
    "hlthf": _YES,
    "hlthp": _YES,
    "linc": _logs(2_000, 4_000, 6_000, 9_000, 12_000, 16_000, 20_000),
    "lfam": _logs(1.5, 2.5, 3.5, 4.5, 5.5, 7.5),
    "educdec": (8.5, 10.5, 11.5, 12.5, 14.5, 15.5),
    "female": _YES,
    "black": _YES,
    "time": (0.95,),
    "mhi": _POINTS,
    "xghindx": _POINTS,
    "tookphys": _YES,
    "year": (1.5, 2.5, 3.5, 4.5),
}
AGE_CUTS = (
    *(1.0, 2.0, 4.0, 6.0, 9.0, 12.0, 15.0, 18.0, 22.0),
    *(25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 60.0),
)
