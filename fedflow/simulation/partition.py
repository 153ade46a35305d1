"""Deals data that one party holds to simulated sites: alike, or as unlike as one wishes.

Every function returns one int64 array of row numbers per site; each row is at exactly one site.
Draws come from ``csprng``: one made from a seed deals the same way every time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse

Parts = list[NDArray[np.int64]]


def iid(rows: int, sites: int, csprng: Csprng) -> Parts:
    """Shuffled and dealt equally; sizes differ by one row at most."""
    _check(rows, sites)
    return [np.sort(part) for part in np.array_split(shuffled(rows, csprng), sites)]


def shards(labels: NDArray[np.generic], sites: int, per_site: int, csprng: Csprng) -> Parts:
    """Sorted by label, cut into ``sites * per_site`` shards, of which each site is dealt some.

    McMahan et al. (AISTATS 2017): with 2 of 200 shards most of 100 sites have two digits.
    """
    count = sites * per_site
    _check(len(labels), count)
    # Shuffled first: rows of one label are in no order that anybody may have put them in.
    order = shuffled(len(labels), csprng)
    pieces = np.array_split(order[np.argsort(labels[order], kind="stable")], count)
    dealt = shuffled(count, csprng)
    return [
        np.sort(np.concatenate([pieces[i] for i in dealt[s * per_site : (s + 1) * per_site]]))
        for s in range(sites)
    ]


def dirichlet(labels: NDArray[np.generic], sites: int, alpha: float, csprng: Csprng) -> Parts:
    """Every label is split over the sites in proportions drawn from a symmetric Dirichlet.

    Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution" (2019) draw per
    site; per label as here is the usual form since. A small ``alpha`` leaves each label at few
    sites. Sites may be left without rows. Misuse unless ``alpha`` is positive.
    """
    _check(len(labels), sites)
    if not 0 < alpha < float("inf"):
        raise Misuse("alpha of a Dirichlet is positive")
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(sites)]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[shuffled(len(rows), csprng)]
        shares = _gamma(alpha, sites, csprng)
        cuts = np.floor(np.cumsum(shares)[:-1] / shares.sum() * len(rows) + 0.5).astype(np.int64)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def by_key(keys: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """One site for each value of a natural key (a hospital, a town): value -> row numbers."""
    values = np.array(keys)
    return {str(key): np.flatnonzero(values == key) for key in np.unique(values)}


def holdings(labels: NDArray[np.generic], parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """int64[sites, labels]: how many rows of each label (ascending) every site has."""
    known = np.unique(labels)
    return np.array([[int((labels[part] == k).sum()) for k in known] for part in parts], np.int64)


def _check(rows: int, pieces: int) -> None:
    if pieces < 1 or rows < pieces:
        raise Misuse(f"{rows} rows cannot be dealt to {pieces}")


def shuffled(count: int, csprng: Csprng) -> NDArray[np.int64]:
    """A random order of 0 to ``count`` - 1: that of 64 random bits each (a tie is no matter)."""
    return np.argsort(csprng.uint64(count), kind="stable")


def _gamma(shape: float, count: int, csprng: Csprng) -> NDArray[np.float64]:
    """Gamma(shape, 1) draws, float64[count], all positive; their shares are Dirichlet.

    By inversion: exact to the accuracy of the inverse incomplete gamma function. For small shapes
    its values underflow, so what is drawn is Gamma(shape + 1) U^(1/shape), in logarithms.
    """
    from scipy.special import gammaincinv

    first, second = csprng.uniform(count), csprng.uniform(count)
    logs = np.log(gammaincinv(shape + 1.0, first)) + np.log1p(-second) / shape
    return np.asarray(np.exp(np.maximum(logs - logs.max(), -700.0)), np.float64)
