"""A federation of sites in one process: the code that sites run, without daemons and files.

Every attempt goes the way an update goes: local training with its sampling, clipping and noise,
rounding to words, the sum modulo 2^bits (through masks, shares and signatures with ``secure``), and
the next model from the opened sum. What is left out: processes, ledgers, policies, the exchange.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.errors import Aborted, Misuse
from fedflow.history import model_file
from fedflow.learning.contribution import Made, contribution
from fedflow.learning.first_model import plan_model
from fedflow.learning.groups import group_of_round
from fedflow.learning.model_file import Arrays, ModelSpec, flatten, model_digest, unflatten
from fedflow.learning.plan import Plan
from fedflow.learning.scoring import Scores, scores_of
from fedflow.learning.server_state import (
    clipping_norm_of,
    initial_state,
    parameters,
    state_spec,
)
from fedflow.learning.site_state import personal_model, site_model
from fedflow.learning.strategy import next_model
from fedflow.learning.value_range import initial_range, next_range
from fedflow.learning.workload import PersonData, Workload
from fedflow.secagg.vectors import wrap
from fedflow.simulation.secure_sum import secure_sum
from fedflow.site.admission import Admitted
from fedflow.site.release import ring_words
from fedflow.wire.messages import Kind, Order


@dataclass(frozen=True, slots=True)
class Opened:
    """One opened sum, and what only a simulation can see beside it.

    ``total`` uint32[D] is the sum over ``survivors`` modulo 2^bits; ``words`` what each survivor
    masked, uint32[D] by site. ``value_range`` and ``clipping_norm`` are those of the round.
    """

    total: NDArray[np.uint32]
    survivors: tuple[int, ...]
    words: Mapping[int, NDArray[np.uint32]]
    value_range: float
    clipping_norm: float


class Federation:
    """``sites`` train ``workload`` by ``plan``.

    ``state`` float32[D] is the current model with what the server's optimiser remembers, in the
    order of ``spec``.

    Site i has the data ``sites[i]``. All randomness comes from ``csprng``, each site's from a child
    of its own, except for the rounding of float updates, which the sites' code draws from the
    operating system. ``secure``: sums go through masks; without, words are added plainly, to the
    same total.
    """

    def __init__(
        self,
        workload: Workload,
        sites: Sequence[PersonData],
        plan: Plan,
        csprng: Csprng,
        *,
        secure: bool = False,
    ) -> None:
        if len(sites) < plan.cohort.minimum:
            raise Misuse(f"{len(sites)} sites; the plan opens no sum below {plan.cohort.minimum}")
        self.workload, self.plan, self.sites, self.secure = workload, plan, tuple(sites), secure
        first = plan_model(workload, plan)
        self.dimension = ModelSpec.of(first).dimension
        self.spec = state_spec(ModelSpec.of(first), plan)
        self.state = flatten(initial_state(first, plan))
        self.first_range = initial_range(plan, workload.reference_persons)
        self.value_range = self.first_range
        self.rounds = 0
        self._attempt = self._sequence = 0
        self._next_own: dict[int, Arrays] = {}
        self._own: list[Arrays | None] = [None] * len(sites)
        self._generators = [csprng.child(f"site {i}") for i in range(len(sites))]
        self._protocol = csprng.child("protocol")
        self._identities: list[Identity] = []

    def model(self) -> Arrays:
        """The current model, by parameter name."""
        return parameters(unflatten(self.state, self.spec))

    def site_models(self) -> list[tuple[Arrays, Arrays]]:
        """The global model at each site, with the site's own layers, and its personalised one."""
        state, out = unflatten(self.state, self.spec), []
        for own in self._own:
            model = site_model(self.workload, state, own, self.plan)
            out.append((model, personal_model(model, own, self.plan)))
        return out

    def round(self, drop: Collection[int] = (), invited: Collection[int] | None = None) -> Opened:
        """One round: an attempt whose sum makes the next model.

        Sites in ``drop`` vanish; only ``invited`` ones are asked (default: all, or the group whose
        turn it is).
        """
        opened = self.attempt(drop, invited)
        self.accept(opened)
        return opened

    def attempt(self, drop: Collection[int] = (), invited: Collection[int] | None = None) -> Opened:
        """A sum for the current round that does not change the model yet. Each has fresh noise.

        Aborted ``too-few`` when fewer sites are left than the plan opens a sum for.
        """
        self._attempt += 1
        self._sequence += 1
        if invited is None and self.plan.participation.groups is not None:
            everybody, manifest = range(len(self.sites)), self.plan.digest()
            invited = group_of_round(self.plan, manifest, everybody, self.rounds + 1)
        asked = range(len(self.sites)) if invited is None else sorted(invited)
        survivors = tuple(i for i in asked if i not in drop)
        if len(survivors) < self.plan.cohort.minimum:
            raise Aborted("too-few", f"{len(survivors)} sites are left; the plan opens no such sum")
        order = self._order(() if invited is None else tuple(asked))
        state = unflatten(self.state, self.spec)
        words = {site: self._words(site, order, state) for site in survivors}
        total = np.zeros(order.dimension, np.uint32)
        for part in words.values():
            np.add(total, part, out=total)
        wrap(total, self.plan.bits(Kind.TRAIN))
        if self.secure:
            total = self._masked_sum(order, words, drop)
        norm = clipping_norm_of(state, self.plan)
        return Opened(total, survivors, words, self.value_range, norm)

    def evaluate(self) -> Scores:
        """What an evaluation by all sites says of the current model. Its sum is added plainly."""
        state = unflatten(self.state, self.spec)
        count = len(self.sites)
        parts = [self._made(site, Kind.EVALUATE, state).vector for site in range(count)]
        return scores_of(np.sum(parts, axis=0, dtype=np.int64), self.plan, count)

    def accept(self, opened: Opened) -> None:
        """Make the next model from ``opened`` as every party does; Violation if it makes none."""
        count, sites = len(opened.survivors), len(self.sites)
        before, now = self.state, opened.value_range
        self._keep(opened)
        after = next_model(
            before, opened.total, count, self.plan, now, sites=sites, dimension=self.dimension
        )
        self.value_range = next_range(
            self.plan,
            now,
            opened.total,
            count,
            sites=sites,
            initial=self.first_range,
            clipping_norm=clipping_norm_of(unflatten(after, self.spec), self.plan),
        )
        self.state = after
        self.rounds += 1
        self._attempt = 0

    def _keep(self, opened: Opened) -> None:
        """What every survivor keeps of its own (:mod:`fedflow.learning.site_state`)."""
        for site in opened.survivors:
            self._own[site] = self._next_own.get(site, self._own[site])

    def _order(self, invited: tuple[int, ...]) -> Order:
        return Order(
            manifest=self.plan.digest(),
            sequence=self._sequence,
            round=self.rounds + 1,
            attempt=self._attempt,
            kind=int(Kind.TRAIN),
            model=model_digest(model_file(self.state, self.spec)),
            previous=bytes(32),
            value_range=self.value_range,
            dimension=self.plan.vector_length(Kind.TRAIN, self.dimension),
            deadline=0,
            invited=invited,
        )

    def _words(self, site: int, order: Order, state: Arrays) -> NDArray[np.uint32]:
        """What ``site`` would mask. Its training process gets a new generator for each request."""
        vector, own = self._made(site, Kind.TRAIN, state)
        if own is not None:
            self._next_own[site] = own
        roster = SimpleNamespace(roster=range(len(self.sites)))
        # All that coding reads of a job: its plan, how many sites there are, and the site's weight.
        job = SimpleNamespace(plan=self.plan, manifest=roster, weight=1.0)
        return ring_words(cast(Admitted, job), order, vector)(0, order.dimension)

    def _made(self, site: int, kind: Kind, state: Arrays) -> Made:
        return contribution(
            self.workload,
            self.sites[site],
            state,
            self.plan,
            kind,
            sites=len(self.sites),
            value_range=self.value_range,
            csprng=self._generators[site].child("training process"),
            own=self._own[site],
        )

    def _masked_sum(
        self, order: Order, words: Mapping[int, NDArray[np.uint32]], drop: Collection[int]
    ) -> NDArray[np.uint32]:
        if not self._identities:
            seeds = (self._protocol.bytes(32) for _ in self.sites)
            self._identities = [
                Identity(Ed25519PrivateKey.from_private_bytes(seed)) for seed in seeds
            ]
        outcome = secure_sum(self._identities, self.plan, order, words, self._protocol, drop=drop)
        if outcome.survivors != tuple(words):
            raise Aborted("lost-site", "the secure sum is over other sites than the simulation's")
        return outcome.sum
