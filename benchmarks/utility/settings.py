"""What is trained on which data: everything the compared methods have in common."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.boston import COLUMNS, load_boston
from benchmarks.data.mnist import SIDE, Digits, load_mnist
from benchmarks.utility.workloads import Linear, RandHie, Regression, rows
from fedflow.crypto.csprng import Csprng
from fedflow.learning import randhie
from fedflow.learning.workload import PersonData, Persons, Workload, is_held_out
from fedflow.simulation import partition

IMAGES = 5_000  #: MNIST images at all sites together
VALIDATION = 5_000  #: MNIST images kept apart from training: learning rates are chosen on them


@dataclass(frozen=True)
class Setting:
    """One task: its sites, what is protected, and how steps are sampled and clipped.

    ``workload`` makes the workload for a divisor of so many units. Of ``sites`` at least
    ``minimum`` are in every opened sum and ``colluders`` work with the server. ``rounds`` steps,
    each a Poisson sample at ``sample_rate``, gradients clipped to ``clipping_norm``.
    """

    name: str
    workload: Callable[[int], Workload]
    sites: tuple[Persons, ...]
    test: Persons
    score: str
    unit: str
    delta: float
    minimum: int
    colluders: int
    sample_rate: float
    rounds: int
    clipping_norm: float
    server_momentum: float = 0.0
    largest_batch: int = 512

    @property
    def units(self) -> int:
        """Units at all sites together."""
        return sum(len(site) for site in self.sites)

    @property
    def about(self) -> str:
        """The setting in words."""
        return (
            f"{self.score}; n={len(self.sites)}, {self.units} {self.unit}s,"
            f" minimum {self.minimum}, colluders {self.colluders}, q={self.sample_rate:g},"
            f" T={self.rounds}, C={self.clipping_norm:g}, delta={self.delta:g}"
        )

    def data(self, persons: Persons) -> PersonData:
        """``persons`` as a site's training data."""
        return PersonData(persons, self.test)


def mnist(sites: int, seed: int, *, images: int = IMAGES, rounds: int = 200) -> Setting:
    """Softmax regression on ``images`` images dealt equally: the setting of the bars about n=20.

    A fifth of the sites may collude and a fifth may be lost. ``seed`` says which images. How far
    local noise falls behind depends on ``images``; see ``mnist_n20_10k`` for twice as many.
    """
    train, test = _digits()
    chosen = shuffled(len(train) - VALIDATION, seed)[:images]
    return Setting(
        name=f"mnist_n{sites}",
        workload=_softmax,
        sites=deal(train.take(chosen), sites),
        test=test,
        score="accuracy of softmax regression",
        unit="record",
        delta=1e-5,
        minimum=sites - sites // 5,
        colluders=sites // 5,
        sample_rate=0.05,
        rounds=rounds,
        clipping_norm=1.0,
    )


def rand_hie(seed: int, *, rounds: int = 200) -> Setting:
    """Will a person see a physician this year? Six real sites; persons, split as in the demo."""
    del seed
    sites = _hie_sites()
    return Setting(
        name="randhie",
        workload=RandHie,
        sites=tuple(site.train for site in sites),
        test=Persons.join([site.holdout for site in sites]),
        score="100 x AUC of logistic regression",
        unit="person",
        delta=1e-5,
        minimum=5,
        colluders=1,
        sample_rate=0.1,
        rounds=rounds,
        clipping_norm=0.5,
    )


def boston(seed: int, *, rounds: int = 100) -> Setting:
    """Linear regression of Boston's house prices, dealt to five sites by ``seed``."""
    x, y = load_boston()
    held = np.array([is_held_out("boston", str(i)) for i in range(len(x))])
    order = np.flatnonzero(~held)
    order = order[shuffled(len(order), seed)]
    return Setting(
        name="boston",
        workload=_regression,
        sites=deal(rows(_with_one(x[order]), y[order]), 5),
        test=rows(_with_one(x[held]), y[held]),
        score="100 x R squared of linear regression",
        unit="record",
        delta=1e-3,
        minimum=4,
        colluders=1,
        sample_rate=0.2,
        rounds=rounds,
        clipping_norm=1.0,
    )


def validating(setting: Setting) -> Setting:
    """The same task with nothing of the test data in it, to choose learning rates by.

    MNIST has images that are in no training set; elsewhere a quarter of each site's units becomes
    the test.
    """
    if setting.name.startswith("mnist"):
        train, _ = _digits()
        return replace(setting, test=train.take(np.arange(len(train) - VALIDATION, len(train))))
    kept = tuple(site.take(np.arange(len(site)) % 4 != 0) for site in setting.sites)
    out = Persons.join([site.take(np.arange(len(site)) % 4 == 0) for site in setting.sites])
    return replace(setting, sites=kept, test=out)


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """The numbers below ``count`` in an order that follows from ``seed``."""
    return partition.shuffled(count, Csprng.from_seed(seed.to_bytes(32, "big")))


def deal(persons: Persons, sites: int) -> tuple[Persons, ...]:
    """``persons`` to so many sites, in turn."""
    return tuple(persons.take(np.arange(i, len(persons), sites)) for i in range(sites))


@functools.cache
def _digits() -> tuple[Persons, Persons]:
    """All images for training and for testing, with brightness 0 to 1."""
    train, test = load_mnist()
    return pixels(train), pixels(test)


def pixels(digits: Digits) -> Persons:
    """Images as units of 784 features from 0 to 1."""
    return rows(digits.images.reshape(len(digits), -1).astype(np.float32) / 255.0, digits.labels)


@functools.cache
def _hie_sites() -> tuple[PersonData, ...]:
    parts = randhie.partition_sites(randhie.vendored_table()).values()
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for i, part in enumerate(parts):
            path = Path(folder) / f"{i}.csv"
            path.write_bytes(part)
            found.append(randhie.workload.load(path))
    return tuple(found)


def _softmax(reference_persons: int) -> Workload:
    return Linear("mnist-softmax", reference_persons, SIDE * SIDE)


def _regression(reference_persons: int) -> Workload:
    return Regression("boston", reference_persons, len(COLUMNS))


def _with_one(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """A last feature that is always 1, whose weight is the intercept."""
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
