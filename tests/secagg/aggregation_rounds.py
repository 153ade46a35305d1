"""Helpers of the secure-aggregation tests: rosters, honest rounds, and what a round left behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity, PublicKey
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.context import RoundContext
from fedflow.secagg.facts import MemoryFacts
from fedflow.secagg.server import Outcome, SecAggServer
from fedflow.secagg.states import Leg

_IDENTITIES: dict[int, Identity] = {}


def identity(site: int) -> Identity:
    """One identity per index for the whole run: making keys is not what is tested."""
    return _IDENTITIES.setdefault(site, Identity.generate())


def roster_of(sites: Collection[int]) -> dict[int, PublicKey]:
    return {site: identity(site).public for site in sites}


def context(**changes: object) -> RoundContext:
    fields: dict[str, object] = {
        "manifest_hash": b"m" * 32,
        "order_hash": b"o" * 32,
        "round": 3,
        "attempt": 1,
        "kind": 1,
        "model_hash": b"w" * 32,
        "previous_transcript": b"p" * 32,
    }
    return RoundContext(**{**fields, **changes})  # type: ignore[arg-type]


def make_client(
    site: int,
    sites: Collection[int],
    *,
    colluders: int = 0,
    minimum: int = 3,
    dimension: int = 8,
    round_ctx: bytes | None = None,
    **changes: object,
) -> SecAggClient:
    arguments: dict[str, object] = {
        "round_ctx": context().digest() if round_ctx is None else round_ctx,
        "index": site,
        "identity": identity(site),
        "roster": roster_of(sites),
        "colluders": colluders,
        "minimum": minimum,
        "dimension": dimension,
        "facts": MemoryFacts(),
        "csprng": Csprng.from_seed(hashlib.sha256(b"site %d" % site).digest()),
    }
    return SecAggClient(**{**arguments, **changes})  # type: ignore[arg-type]


Tamper = Callable[[Leg, int, bytes], bytes]


@dataclass
class Round:
    """An honest server and sites, run leg by leg, with everything that was sent kept."""

    sites: tuple[int, ...]
    colluders: int = 0
    minimum: int = 3
    dimension: int = 8
    round_ctx: bytes = field(default_factory=lambda: context().digest())
    drops: Mapping[Leg, Collection[int]] = field(default_factory=dict)
    tamper: Tamper = lambda leg, site, data: data
    vectors: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = SecAggServer(
            round_ctx=self.round_ctx,
            roster=roster_of(self.sites),
            colluders=self.colluders,
            minimum=self.minimum,
            dimension=self.dimension,
        )
        self.clients = {
            site: make_client(
                site,
                self.sites,
                colluders=self.colluders,
                minimum=self.minimum,
                dimension=self.dimension,
                round_ctx=self.round_ctx,
            )
            for site in self.sites
        }
        generator = np.random.default_rng(7)
        for site in self.sites:
            self.vectors.setdefault(
                site, generator.integers(0, 1 << 32, self.dimension, dtype=np.uint32)
            )
        self.sent: dict[tuple[Leg, int], bytes] = {}
        self.downs: dict[str, bytes | dict[int, bytes]] = {}
        self.alive = list(self.sites)

    def send(self, leg: Leg, produce: Callable[[int], bytes]) -> None:
        """Every site still alive sends; those in ``drops`` vanish first."""
        self.alive = [site for site in self.alive if site not in self.drops.get(leg, ())]
        for site in self.alive:
            data = self.tamper(leg, site, produce(site))
            self.sent[leg, site] = data
            self.server.receive(data)

    def adverts(self) -> bytes:
        self.send(Leg.ADVERT, lambda site: self.clients[site].advertise())
        self.downs["roster"] = data = self.server.close_adverts()
        return data

    def shares(self) -> dict[int, bytes]:
        roster = self.adverts()
        self.send(Leg.SHARES, lambda site: self.clients[site].on_roster(roster))
        self.downs["delivery"] = data = self.server.close_shares()
        return data

    def masked(self) -> bytes:
        deliveries = self.shares()

        def produce(site: int) -> bytes:
            self.clients[site].on_delivery(deliveries[site])
            return self.clients[site].mask(self.vectors[site])

        self.send(Leg.MASKED, produce)
        self.downs["survivors"] = data = self.server.close_masked()
        return data

    def signed(self) -> bytes:
        survivors = self.masked()
        self.send(Leg.SIGNED, lambda site: self.clients[site].on_survivors(survivors))
        self.downs["consistency"] = data = self.server.close_signatures()
        return data

    def run(self) -> Outcome:
        consistency = self.signed()
        self.send(Leg.UNMASK, lambda site: self.clients[site].on_consistency(consistency))
        return self.server.close_unmask()

    def plain_sum(self, survivors: Collection[int]) -> np.ndarray:
        total = np.zeros(self.dimension, np.uint32)
        for site in survivors:
            total += self.vectors[site]
        return total

    def masked_messages(self) -> dict[int, bytes]:
        return {site: data for (leg, site), data in self.sent.items() if leg == Leg.MASKED}
