"""What smaller updates save, and what they cost: ``python -m benchmarks.learning.smaller``.

Bytes: all that one site of six sends in a round of real secure aggregation, keys, shares and
signatures included, for the 199,210 parameters of McMahan's 2NN. Accuracy: a softmax regression on
MNIST at 20 sites, 12,000 images, 40 rounds of 10 local steps, without an effect of privacy. Needs
MNIST (``make data-mnist``); about five minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch.nn.utils import skip_init

from benchmarks.data.fetch import DataMissing
from benchmarks.data.mnist import SIDE
from benchmarks.learning.digits import Run, dealt, images, plan_of
from benchmarks.utility.workloads import DIGITS, Classifier
from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.secagg.server import SecAggServer
from fedflow.simulation.federation import Federation
from fedflow.simulation.secure_sum import secure_sum
from fedflow.wire.messages import Kind, Order

PARAMETERS, BYTE_SITES = 199_210, 6
SITES, IMAGES, ROUNDS = 20, 12_000, 40


class Counting(SecAggServer):
    """Counts what it receives."""

    received = 0

    def receive(self, data: bytes, chunk: Callable[[int], bytes] | None = None) -> None:
        """As its base; chunks count too."""
        Counting.received += len(data)
        if chunk is None:
            return super().receive(data)

        def counted(index: int) -> bytes:
            part = chunk(index)
            Counting.received += len(part)
            return part

        return super().receive(data, counted)


def sent_per_site(bits: int, density: float) -> float:
    """Bytes that a site sends in one training round."""
    plan = plan_of(
        BYTE_SITES, 1.0, secure_aggregation__bits=bits, secure_aggregation__density=density
    )
    csprng, length = Csprng.from_seed(bytes(32)), plan.vector_length(Kind.TRAIN, PARAMETERS)
    keys = [Ed25519PrivateKey.from_private_bytes(csprng.bytes(32)) for _ in range(BYTE_SITES)]
    order = Order(
        manifest=bytes(32),
        sequence=1,
        round=1,
        attempt=1,
        kind=int(Kind.TRAIN),
        model=bytes(32),
        previous=bytes(32),
        value_range=1.0,
        dimension=length,
        deadline=0,
    )
    words = {site: np.zeros(length, np.uint32) for site in range(BYTE_SITES)}
    Counting.received = 0
    secure_sum([Identity(key) for key in keys], plan, order, words, csprng, server=Counting)
    return Counting.received / BYTE_SITES


class Softmax(torch.nn.Module):
    """[.., 784] to [.., 10], 7,850 parameters, all zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.line = skip_init(torch.nn.Linear, SIDE * SIDE, DIGITS)  # type: ignore[no-untyped-call]
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.line(x)
        return scores


class Digits(Classifier):
    """The workload of the accuracies."""

    def __init__(self) -> None:
        super().__init__("mnist-softmax", IMAGES // SITES)

    def build_model(self) -> torch.nn.Module:
        return Softmax()


def accuracy(how: str, density: float, rate: float) -> float:
    """Percent right of the 10,000 test images after all rounds."""
    plan = plan_of(
        SITES,
        1.0,
        training__local_steps=10,
        privacy__sample_rate=0.1,
        strategy__server_learning_rate=rate,
        secure_aggregation__density=density,
    )
    csprng, sites = Csprng.from_seed(bytes(32)), dealt(how, IMAGES, SITES, 7)
    run = Run(plan, Federation(Digits(), sites, plan, csprng), images(IMAGES)[1], 7, every=ROUNDS)
    return list(run.rounds(ROUNDS, 200.0))[-1]


def lines() -> Iterator[str]:
    """The two tables, as Markdown."""
    yield "| bits | density 1 | density 0.1 |\n|---|---|---|"
    for bits in (32, 16, 8):
        sent = [f"{sent_per_site(bits, density):,.0f}" for density in (1.0, 0.1)]
        yield f"| {bits} | " + " | ".join(sent) + " |"
    yield "\n| density | server_learning_rate | IID | two shards a site |\n|---|---|---|---|"
    for density, rate in ((1.0, 1.0), (0.1, 1.0), (0.1, 3.0), (0.1, 10.0)):
        found = [f"{accuracy(how, density, rate):.1f}" for how in ("iid", "shards")]
        yield f"| {density:g} | {rate:g} | " + " | ".join(found) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables; exit status 2 for missing data."""
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    try:
        for line in lines():
            print(line, flush=True)
    except DataMissing as unable:
        print(f"no figures: {unable}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
