"""What the shards and the coordinator of a simulation agree on, and how they post messages."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import Aborted, InputError, Violation
from fedflow.exchange import Exchange, open_exchange
from fedflow.learning.model_file import ModelSpec, encode_model
from fedflow.secagg.params import MAX_COHORT, Thresholds
from fedflow.secagg.quantise import Quantiser
from fedflow.wire.codec import Reader

BITS = 32
SUITE = 1
RANGE = 4.0  # the largest step between numbers from -1 to 1, and room
POLL_SECONDS = 0.02
_MOST_BYTES = 1 << 30

Messages = Mapping[int, Sequence[bytes]]


@dataclass(frozen=True)
class Simulation:
    """What shards and coordinator agree on. ``lost`` is the share of sites that vanish in a round
    after their shares were dealt; ``seconds`` is how long anybody waits for anybody.
    """

    folder: Path
    sites: int
    shards: int
    dimension: int = 1000
    lost: float = 0.05
    seconds: float = 600.0

    @classmethod
    def create(cls, folder: Path, **settings: float) -> Simulation:
        """Make a simulation in ``folder``, with a first model of zeros and a seed for its keys."""
        made = cls(folder.resolve(), **settings)  # type: ignore[arg-type]
        made.check()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = {name: value for name, value in asdict(made).items() if name != "folder"}
        try:
            descriptor = os.open(folder / "seed", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise InputError("holds a simulation already", where=str(folder)) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        (folder / "simulation.json").write_text(json.dumps(known))
        keys = [identity.public.raw for identity in made.identities(range(made.sites)).values()]
        (folder / "roster").write_bytes(b"".join(keys))
        made.exchange().put(made.model_key(1), encode_model(made.spec.zeros()))
        return made

    @classmethod
    def open(cls, folder: Path) -> Simulation:
        """The simulation somebody made in ``folder``."""
        try:
            return cls(folder.resolve(), **json.loads((folder / "simulation.json").read_text()))
        except FileNotFoundError:
            raise InputError("there is no simulation in this folder", where=str(folder)) from None

    def check(self) -> None:
        """InputError or Refusal for numbers that make no federation."""
        if not 1 <= self.shards <= self.sites <= MAX_COHORT:
            raise InputError(
                f"{self.sites} sites cannot be in {self.shards} shards",
                field="shards",
                allowed=f"1 to the number of sites, which is at most {MAX_COHORT}",
            )
        if self.dimension < 1 or not 0.0 <= self.lost < 1.0:
            raise InputError(
                "a positive number of coordinates, and a share of lost sites below 1",
                field="dimension, lost",
            )
        Thresholds.for_cohort(self.sites, self.colluders, self.minimum)

    @property
    def colluders(self) -> int:
        """A tenth of the sites may work with the server."""
        return self.sites // 10

    @property
    def minimum(self) -> int:
        """The smallest number of sites in a sum."""
        return self.sites // 2 + 1

    def exchange(self) -> Exchange:
        """Where the messages go."""
        return open_exchange(str(self.folder / "exchange"))

    def members(self, shard: int) -> range:
        """The sites of a shard: every ``shards``-th."""
        return range(shard, self.sites, self.shards)

    def identities(self, sites: Collection[int]) -> dict[int, Identity]:
        """Signing keys, from the folder's seed: the same in every process and round."""
        seed = (self.folder / "seed").read_bytes()
        return {site: _identity(seed, f"site {site}") for site in sites}

    def roster(self) -> dict[int, PublicKey]:
        """Everybody's public key."""
        raw = (self.folder / "roster").read_bytes()
        return {site: PublicKey(raw[32 * site : 32 * site + 32]) for site in range(self.sites)}

    def coordinator(self) -> Identity:
        """The key orders are signed with."""
        return _identity((self.folder / "seed").read_bytes(), "coordinator")

    def is_lost(self, site: int, number: int) -> bool:
        """Whether ``site`` vanishes in round ``number``: made up, and the same for everybody."""
        drawn = hashlib.sha256(f"fedflow/1 lost {number} {site}".encode()).digest()
        return int.from_bytes(drawn[:4], "big") < self.lost * 2**32

    def wanted(self, site: int) -> NDArray[np.float32]:
        """The numbers from -1 to 1 that ``site`` pulls the model to; about nobody."""
        label = f"fedflow/1 made-up numbers {site}".encode()
        drawn = np.frombuffer(hashlib.shake_256(label).digest(4 * self.dimension), "<i4")
        return (drawn * 2.0**-31).astype(np.float32)

    def model_key(self, number: int) -> str:
        """Where the model is that round ``number`` starts from."""
        return f"models/{number:06d}"

    def model(self, exchange: Exchange, number: int) -> bytes:
        """The file of that model; Violation when it is not there."""
        data = exchange.get(self.model_key(number), _MOST_BYTES)
        if data is None:
            raise Violation("no-model", f"round {number} has no model to start from")
        return data

    @property
    def spec(self) -> ModelSpec:
        """The model's one parameter."""
        return ModelSpec((("mean", (self.dimension,)),))

    @property
    def coding(self) -> Quantiser:
        """How updates become words."""
        return Quantiser(value_range=RANGE, sites=self.sites, bits=BITS)


class Post:
    """The objects of one round. Whoever waits gives up when somebody did, or time is up."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        self._exchange, self._root = simulation.exchange(), f"rounds/{number:06d}"
        self._until, self._number = time.monotonic() + simulation.seconds, number

    def put(self, name: str, data: bytes) -> None:
        """Post an object."""
        self._exchange.put(f"{self._root}/{name}", data)

    def give_up(self, reason: str) -> None:
        """Tell everybody that this round ends without a sum. The first reason stays."""
        try:
            self.put("given-up", reason.encode())
        except Violation:
            return

    def wait(self, name: str) -> bytes:
        """An object, as soon as it is there; Aborted when it does not come."""
        while (data := self._exchange.get(f"{self._root}/{name}", _MOST_BYTES)) is None:
            reason = self._exchange.get(f"{self._root}/given-up", 1 << 16)
            if reason is not None:
                raise Aborted("given-up", reason.decode(errors="replace"))
            if time.monotonic() > self._until:
                raise Aborted("too-late", f"{name} of round {self._number} did not come in time")
            time.sleep(POLL_SECONDS)
        return data


def pack(messages: Messages) -> bytes:
    """The messages of several sites as one object: site, how many, each with its length."""
    out = [len(messages).to_bytes(4, "big")]
    for site, parts in messages.items():
        out += [site.to_bytes(4, "big"), len(parts).to_bytes(4, "big")]
        for part in parts:
            out += [len(part).to_bytes(4, "big"), part]
    return b"".join(out)


def unpack(data: bytes, members: Collection[int]) -> dict[int, list[bytes]]:
    """What :func:`pack` packed; Violation for a site outside ``members``, or one named twice."""
    reader, out = Reader(data), dict[int, list[bytes]]()
    for _ in range(reader.uint(4)):
        site = reader.uint(4)
        if site not in members or site in out:
            raise Violation("wrong-place", "a shard sent messages of a site that is not its own")
        parts = reader.uint(4)
        if parts < 1:
            raise Violation("truncated", "a site is named without a message")
        out[site] = [reader.take(reader.uint(4)) for _ in range(parts)]
    reader.end()
    return out


def _identity(seed: bytes, name: str) -> Identity:
    own = hashlib.sha256(b"fedflow/1 simulated key\0" + seed + name.encode()).digest()
    return Identity(Ed25519PrivateKey.from_private_bytes(own))
