"""Thousands of simulated sites in a few processes, the real protocol between them and a server.

A *shard* is one process's part of the sites: their keys, secrets and clients stay in it while a
round lasts. Shards and coordinator exchange what sites and coordinator would, all messages of a
shard's sites in one object per leg, through a folder. Training is made up (every site wants its own
public numbers, the model becomes their mean), and there is no noise: this measures the protocol and
is nothing for real data. There are no sites' boundaries here either: whoever runs the simulation
has every secret in it.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Violation
from fedflow.learning.model_file import (
    decode_model,
    encode_model,
    flatten,
    model_digest,
    unflatten,
)
from fedflow.secagg.checks import SharedChecks
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.context import RoundContext
from fedflow.secagg.facts import MemoryFacts
from fedflow.secagg.server import SecAggServer
from fedflow.secagg.vectors import wrap
from fedflow.simulation.shards import BITS, RANGE, SUITE, Post, Simulation, pack, unpack
from fedflow.wire.messages import Kind, Order
from fedflow.wire.sealed import seal, unseal

__all__ = ["Opened", "Report", "Simulation", "open_sum", "play_shard"]


@dataclass(frozen=True)
class Report:
    """What a shard tells of a round: the run time and peak memory of its process."""

    shard: int
    survivors: int
    seconds: float
    peak_mb: float


def play_shard(simulation: Simulation, shard: int, number: int) -> Report:
    """Every site of ``shard`` in round ``number``, from its key to its last answer."""
    began, post = time.monotonic(), Post(simulation, number)
    try:
        survivors = _play(simulation, shard, number, post)
    except BaseException as error:
        post.give_up(f"shard {shard}: {type(error).__name__}")
        raise
    report = Report(shard, survivors, time.monotonic() - began, peak_mb())
    post.put(f"report/{shard}", json.dumps(asdict(report)).encode())
    return report


def _play(simulation: Simulation, shard: int, number: int, post: Post) -> int:
    identities = simulation.identities(simulation.members(shard))
    order = unseal(Order, post.wait("order"), simulation.coordinator().public)
    data = simulation.model(simulation.exchange(), number)
    if model_digest(data) != order.model:
        raise Violation("wrong-digest", "the model is not the one that was ordered")
    model = flatten(decode_model(data, simulation.spec))
    clients, shared, roster = {}, SharedChecks(), simulation.roster()
    for site, identity in identities.items():
        clients[site] = SecAggClient(
            round_ctx=RoundContext.of(order).digest(),
            index=site,
            identity=identity,
            roster=roster,
            colluders=simulation.colluders,
            minimum=simulation.minimum,
            dimension=order.dimension,
            facts=MemoryFacts(),
            csprng=Csprng.from_os(),
            suite_number=SUITE,
            bits=BITS,
            shared=shared,
        )
    post.put(f"up/advert/{shard}", pack({s: [c.advertise()] for s, c in clients.items()}))
    cohort = post.wait("down/roster")
    post.put(f"up/shares/{shard}", pack({s: [c.on_roster(cohort)] for s, c in clients.items()}))
    deliveries = unpack(post.wait(f"down/delivery/{shard}"), clients)
    masked, plain = {}, np.zeros(order.dimension, np.uint32)
    alive = {s: c for s, c in clients.items() if not simulation.is_lost(s, number)}
    for site, client in alive.items():
        client.on_delivery(deliveries[site][0])
        update = (simulation.wanted(site) - model).astype(np.float32)
        words = simulation.coding.encode(update, Csprng.from_os())
        np.add(plain, words, out=plain)
        chunks: list[bytes] = []
        header = client.mask(words, lambda _, chunk, into=chunks: into.append(chunk))  # type: ignore[misc]
        masked[site] = [header, *chunks]
    post.put(f"plain/{shard}", plain.astype("<u4").tobytes())  # only a simulation can
    post.put(f"up/masked/{shard}", pack(masked))
    survivors = post.wait("down/survivors")
    post.put(f"up/signed/{shard}", pack({s: [c.on_survivors(survivors)] for s, c in alive.items()}))
    agreed = post.wait("down/consistency")
    post.put(f"up/unmask/{shard}", pack({s: [c.on_consistency(agreed)] for s, c in alive.items()}))
    return len(alive)


@dataclass(frozen=True)
class Opened:
    """One round's outcome: its sum was compared with the plain sum of the survivors' words."""

    number: int
    survivors: int
    dropped: int
    seconds: float
    model: str  # its SHA-256 in hex
    shards: tuple[Report, ...]


def open_sum(simulation: Simulation, number: int) -> Opened:
    """The coordinator's part of round ``number``: order, legs, sum, next model.

    Aborted when a shard gave up or did not answer in time, or too few sites are left; Violation
    when the sum is not the plain sum.
    """
    began, post = time.monotonic(), Post(simulation, number)
    try:
        survivors, dropped, digest = _open(simulation, number, post)
        seconds = time.monotonic() - began
        names = [f"report/{shard}" for shard in range(simulation.shards)]
        reports = tuple(Report(**json.loads(post.wait(name))) for name in names)
    except BaseException as error:
        post.give_up(f"coordinator: {type(error).__name__}")
        raise
    return Opened(number, survivors, dropped, seconds, digest.hex(), reports)


def _open(simulation: Simulation, number: int, post: Post) -> tuple[int, int, bytes]:
    exchange = simulation.exchange()
    data = simulation.model(exchange, number)
    order = Order(
        manifest=hashlib.sha256((simulation.folder / "roster").read_bytes()).digest(),
        sequence=number,
        round=number,
        attempt=1,
        kind=int(Kind.TRAIN),
        model=model_digest(data),
        previous=bytes(32),
        value_range=RANGE,
        dimension=simulation.dimension,
        deadline=int((time.time() + simulation.seconds) * 1000),
    )
    server = SecAggServer(
        round_ctx=RoundContext.of(order).digest(),
        roster=simulation.roster(),
        colluders=simulation.colluders,
        minimum=simulation.minimum,
        dimension=order.dimension,
        suite_number=SUITE,
        bits=BITS,
    )

    def receive(leg: str) -> None:
        for shard in range(simulation.shards):
            members = simulation.members(shard)
            for message, *chunks in unpack(post.wait(f"up/{leg}/{shard}"), members).values():
                server.receive(message, chunks.__getitem__ if leg == "masked" else None)

    post.put("order", seal(simulation.coordinator(), order))
    receive("advert")
    post.put("down/roster", server.close_adverts())
    receive("shares")
    deliveries = server.close_shares()
    for shard in range(simulation.shards):
        theirs = {site: [deliveries[site]] for site in simulation.members(shard)}
        post.put(f"down/delivery/{shard}", pack(theirs))
    receive("masked")
    post.put("down/survivors", server.close_masked())
    receive("signed")
    post.put("down/consistency", server.close_signatures())
    receive("unmask")
    outcome = server.close_unmask()

    plain = np.zeros(order.dimension, np.uint32)
    for shard in range(simulation.shards):
        np.add(plain, np.frombuffer(post.wait(f"plain/{shard}"), "<u4"), out=plain)
    wrap(plain, BITS)
    if not np.array_equal(outcome.sum, plain):
        raise Violation("other-sum", "the secure sum is not the plain sum of the survivors' words")
    count = len(outcome.survivors)
    step = simulation.coding.decode(outcome.sum) / count
    model = flatten(decode_model(data, simulation.spec)) + step.astype(np.float32)
    following = encode_model(unflatten(model, simulation.spec))
    exchange.put(simulation.model_key(number + 1), following)
    return count, simulation.sites - count, model_digest(following)


def peak_mb() -> float:
    """The most memory this process has had (MB)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)
