"""MNIST at 100 sites, and the networks of McMahan et al. (AISTATS 2017)."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.data.mnist import SIDE, load_mnist
from benchmarks.utility.settings import pixels
from benchmarks.utility.workloads import DIGITS, Classifier
from fedflow.coordinator.selection import select_sites
from fedflow.crypto.csprng import Csprng
from fedflow.learning.evaluation import exact_score
from fedflow.learning.plan import Plan
from fedflow.learning.public_weights import public_model
from fedflow.learning.workload import PersonData, Persons
from fedflow.simulation import partition
from fedflow.simulation.federation import Federation

SITES, FRACTION = 100, 0.1
HIDDEN = 200  #: units in a hidden layer of their 2NN
CHANNELS, UNITS = (8, 16), 128  #: a quarter of those of their CNN
Network = Callable[[], torch.nn.Module]
#: No update is ever this long, or has a coordinate this large: nothing is clipped or clamped.
NORM, RANGE = 50.0, 2.0


class TwoHidden(torch.nn.Module):
    """Two hidden layers with ReLU, [.., 784] to [.., 10]: 199,210 parameters for 200 units each."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        sizes = (SIDE * SIDE, hidden, hidden, DIGITS)
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        scores: torch.Tensor = self.layers[-1](x)
        return scores


class SmallCnn(torch.nn.Module):
    """A quarter of their CNN, in channels and units: [.., 784] to [.., 10], 105,194 parameters.

    Two 5 x 5 convolutions, each followed by ReLU and 2 x 2 pooling, and one hidden layer. Theirs
    has 32 and 64 channels, 512 units and 1,663,370 parameters, and takes over ten times as long.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, 5, padding=2) for a, b in itertools.pairwise((1, *CHANNELS))
        )
        # On a processor, steps take half as long again in torch's other layout.
        self.convolutions.to(memory_format=torch.channels_last)
        pooled = CHANNELS[-1] * (SIDE // 4) ** 2
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in itertools.pairwise((pooled, UNITS, DIGITS))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = x.reshape(-1, 1, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        for layer in self.convolutions:
            made = torch.nn.functional.max_pool2d(torch.relu(layer(made)), 2)
        hidden, last = self.layers
        scores: torch.Tensor = last(torch.relu(hidden(made.flatten(1))))
        return scores.view(*x.shape[:-1], DIGITS)


class Digits(Classifier):
    """The workload: one image is one row of 784 features, and one unit."""

    def __init__(self, reference_persons: int, network: Network) -> None:
        super().__init__("mnist-2nn", reference_persons)
        self._first = public_model(network)

    def build_model(self) -> torch.nn.Module:
        return copy.deepcopy(self._first)  # every site of every round asks for it


@functools.cache
def images(most: int) -> tuple[Persons, Persons]:
    """At most so many images for training, and all 10,000 for testing."""
    train, test = load_mnist()
    return pixels(train.take(slice(most))), pixels(test)


def dealt(how: str, most: int, sites: int, seed: int) -> list[PersonData]:
    """The images at ``sites``: "iid", "shards" (two each) or "dirichlet" followed by its alpha."""
    train, test = images(most)
    labels, csprng = train.y[:, 0], Csprng.from_seed(seed.to_bytes(32, "big"))
    if how == "iid":
        parts = partition.iid(len(train), sites, csprng)
    elif how == "shards":
        parts = partition.shards(labels, sites, 2, csprng)
    else:
        parts = partition.dirichlet(labels, sites, float(how.removeprefix("dirichlet")), csprng)
    nobody: NDArray[np.int64] = np.zeros(0, np.int64)
    held = test.take(nobody)
    return [PersonData(train.take(part), held) for part in parts]


def plan_of(sites: int, fraction: float, **fields: Any) -> Plan:
    """A plan without any effect of privacy, so that only what is compared matters.

    The whole site is protected, with a clipping norm that nothing reaches and noise of a millionth
    of a coordinate; masks and shares of noise are as always. ``section__field`` names a field.
    """
    raw: dict[str, dict[str, Any]] = {
        "plan": {"name": "mnist", "workload": "mnist-2nn", "rounds": 10_000},
        "cohort": {"minimum": max(3, round(sites * fraction)), "colluders": 0},
        "participation": {"fraction": fraction},
        "strategy": {"name": "fedavg", "server_learning_rate": 1.0},
        "training": {"local_steps": 1, "learning_rate": 0.1},
        "privacy": {
            "mechanism": "site",
            "unit": "site",
            "clipping_norm": NORM,
            "noise_multiplier": 1e-7,
            "sample_rate": 1.0,
            "delta": 1e-5,
        },
        "evaluation": {"every": 1, "metric": "accuracy", "noise_multiplier": 1.0},
        "secure_aggregation": {"bits": 32, "value_range": RANGE},
        "deadlines": {"round_seconds": 60.0, "leg_seconds": 60.0},
    }
    for name, value in fields.items():
        section, field_name = name.split("__")
        raw[section][field_name] = value
    return Plan.model_validate(raw)


@dataclass
class Run:
    """One federation on its way: rounds done and the accuracy then, every ``every`` rounds."""

    plan: Plan
    federation: Federation
    test: Persons
    seed: int
    every: int = 1
    curve: list[tuple[int, float]] = field(default_factory=list)

    def rounds(self, most: int, target: float = 100.0) -> Iterator[float]:
        """Train and score, until the score is ``target`` or after ``most`` rounds."""
        csprng = Csprng.from_seed((self.seed + 1_000).to_bytes(32, "big"))
        labels = {i: str(i) for i in range(len(self.federation.sites))}
        for number in range(1, most + 1):
            # As the coordinator asks them; a site without data would have nothing to say.
            there = [i for i, site in enumerate(self.federation.sites) if len(site.train)]
            asked = select_sites(self.plan, labels, there, {}, csprng)
            self.federation.round(invited=asked)
            if number % self.every == 0 or number == most:
                score = 100.0 * self.score()
                self.curve.append((number, score))
                yield score
                if score >= target:
                    return

    def score(self) -> float:
        """Accuracy on the test images, 0 to 1."""
        model = self.federation.model()
        return exact_score(self.federation.workload, self.test, model, self.plan)


def federated(
    plan: Plan,
    sites: list[PersonData],
    most: int,
    seed: int,
    *,
    secure: bool,
    every: int = 1,
    network: Network = TwoHidden,
) -> Run:
    """A federation that has not begun."""
    csprng = Csprng.from_seed((seed + 2_000).to_bytes(32, "big"))
    workload = Digits(max(1, sum(len(site.train) for site in sites) // len(sites)), network)
    return Run(
        plan,
        Federation(workload, sites, plan, csprng, secure=secure),
        images(most)[1],
        seed,
        every,
    )


def rounds_to(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Rounds until the best score so far reaches ``target``, with a line between two scores.

    McMahan et al.: curves are made monotonic, then interpolated linearly. None when it never does.
    """
    at, best = 0.0, 0.0
    for number, score in curve:
        if score >= target:
            return number - (number - at) * (score - target) / (score - best)
        at, best = number, max(best, score)
    return None
