"""A Byzantine server with Byzantine sites, free to show every honest site something else.

The machine lets the adversary drive honest sites one by one with cohorts, deliveries, survivor sets
and signatures of its choice, in any order. Whatever it does:

I1. it never gets enough shares of both secrets of an honest site;
I2. everyone who answers answers for one survivor set with enough honest sites in it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import pytest
from aggregation_rounds import context, identity, make_client
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.merkle import MerkleTree
from fedflow.errors import Refusal, Violation
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.messages import (
    SELF_MASK,
    Advert,
    Consistency,
    Delivered,
    Delivery,
    Roster,
    Shares,
    Signed,
    Survivors,
    Unmask,
)
from fedflow.secagg.params import Thresholds
from fedflow.secagg.states import ClientState

# Few choices, so that the interesting combinations are met: leave out none, or one or two sites.
left_out = st.sets(st.integers(0, 5), max_size=2)
rarely = st.sampled_from([False] * 5 + [True])


class Adversary(RuleBasedStateMachine):
    """Sites 0..c-1 are corrupt; the rest are honest clients that only see the adversary's bytes."""

    @initialize(n=st.integers(3, 6), c=st.integers(0, 2), minimum=st.integers(1, 6))
    def start(self, n: int, c: int, minimum: int) -> None:
        self.c = min(c, n - 2)
        self.minimum = min(minimum, n)
        self.sites = tuple(range(n))
        self.honest = {site: self.new(site) for site in self.sites[self.c :]}
        self.adverts = {
            site: Advert.decode((self.honest.get(site) or self.new(site)).advertise())
            for site in self.sites
        }
        self.shares: dict[bytes, dict[int, Shares]] = defaultdict(dict)
        self.signed: dict[int, Signed] = {}
        self.answers: dict[int, Unmask] = {}
        self.knows: dict[tuple[int, int], set[int]] = defaultdict(set)

    def new(self, site: int) -> SecAggClient:
        seed = Csprng.from_seed(hashlib.sha256(b"adversary %d" % site).digest())
        return make_client(site, self.sites, colluders=self.c, minimum=self.minimum, csprng=seed)

    def chosen(self, among: tuple[int, ...], without: set[int], site: int) -> tuple[int, ...]:
        return tuple(s for s in among if s == site or s not in without)

    # One rule for every leg: separate rules would often be switched off together in a run.
    @rule(skip=left_out, without=left_out, reckless=rarely)
    def turn_to_some_sites(self, skip: set[int], without: set[int], reckless: bool) -> None:
        """Each site not skipped gets what it waits for, with ``without`` left out of it."""
        for site, client in self.honest.items():
            if site in skip:
                continue
            if client.state == ClientState.ADVERTISED:
                self.roster_to(site, client, without)
            elif client.state == ClientState.DEALT:
                self.delivery_to(site, client, without)
            elif client.state == ClientState.MASKED or (
                client.state == ClientState.SIGNED and reckless
            ):
                self.survivors_to(site, client, without)
            elif client.state in (ClientState.SIGNED, ClientState.UNMASKED):
                self.signatures_to(site, client, reckless)

    def roster_to(self, site: int, client: SecAggClient, without: set[int]) -> None:
        members = self.chosen(self.sites, without, site)
        try:
            Thresholds.for_cohort(len(members), self.c, self.minimum)
        except Refusal:
            return
        roster = Roster(tuple(self.adverts[s] for s in members)).encode()
        shares = Shares.decode(client.on_roster(roster))
        self.shares[client.context][site] = shares
        # Corrupt members hold their share of both secrets, and deal honestly to keep things going.
        for corrupt in range(self.c):
            if corrupt in members:
                self.knows[site, 1].add(corrupt)
                self.knows[site, 2].add(corrupt)
                if corrupt not in self.shares[client.context]:
                    twin = self.new(corrupt)
                    twin.advertise()
                    self.shares[client.context][corrupt] = Shares.decode(twin.on_roster(roster))

    def delivery_to(self, site: int, client: SecAggClient, without: set[int]) -> None:
        items = []
        for dealer, shares in sorted(self.shares[client.context].items()):
            if dealer == site or dealer in without:
                continue
            tree = MerkleTree([share.leaf() for share in shares.shares])
            at = [share.recipient for share in shares.shares].index(site)
            items.append(Delivered(shares.dealing, shares.shares[at].sealed, tree.path(at)))
        if len(items) + 1 >= client._u1.thresholds.survivors:
            client.on_delivery(Delivery(site, tuple(items)).encode())
            client.mask(np.zeros(8, np.uint32))

    def survivors_to(self, site: int, client: SecAggClient, without: set[int]) -> None:
        survivors = self.chosen(client.delivered, without, site)
        if len(survivors) < client._u1.thresholds.survivors:
            return
        try:
            data = client.on_survivors(Survivors(client._u1.bitmap(survivors)).encode())
        except Violation:
            return
        self.signed[site] = Signed.decode(data)

    def signatures_to(self, site: int, client: SecAggClient, reckless: bool) -> None:
        """With every signature that fits, forging those of corrupt sites."""
        body = client._u1.survivors_body(client.delivered, client.survivors)
        signatures = [
            Signed(s, identity(s).sign("secagg survivors", body))
            for s in client.survivors
            if s < self.c
        ]
        for other, signed in self.signed.items():
            same = self.honest[other]
            if other in client.survivors and view(same) == view(client):
                signatures.append(signed)
        if len(signatures) < client._u1.thresholds.signatures and not reckless:
            return
        signatures.sort(key=lambda signed: signed.site)
        try:
            data = client.on_consistency(Consistency(tuple(signatures)).encode())
        except Violation:
            return
        self.answers[site] = answer = Unmask.decode(data)
        for reveal in answer.reveals:
            self.knows[reveal.site, reveal.kind].add(site)

    @invariant()
    def never_both_secrets(self) -> None:
        for victim, client in getattr(self, "honest", {}).items():
            if client._u1 is None:
                continue
            need = client._u1.thresholds.shares
            # Corrupt holders count for both secrets; an honest one has answered for one of them.
            assert min(len(self.knows[victim, kind]) for kind in (1, 2)) < need, "I1"

    @invariant()
    def one_survivor_set_with_enough_honest_sites(self) -> None:
        by_context = defaultdict(set)
        for site in getattr(self, "answers", {}):
            client = self.honest[site]
            by_context[client.context].add(view(client))
            honest = [s for s in client.survivors if s >= self.c]
            assert len(honest) >= client._u1.thresholds.honest >= 2, "I2"
            alive = {r.site for r in self.answers[site].reveals if r.kind == SELF_MASK}
            assert alive == set(client.survivors), "I2"
        assert all(len(views) == 1 for views in by_context.values()), "I2"


def view(client: SecAggClient) -> tuple:
    return client.context, client.delivered, client.survivors


Adversary.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAdversary = Adversary.TestCase


def split_view_attack() -> tuple[int, int]:
    """Two survivor sets, one to each half of six sites; the shares of both secrets of site 5."""
    sites = tuple(range(6))
    clients = {site: make_client(site, sites, colluders=0, minimum=1) for site in sites}
    roster = Roster(tuple(Advert.decode(clients[s].advertise()) for s in sites)).encode()
    shares = {s: Shares.decode(clients[s].on_roster(roster)) for s in sites}
    for site in sites:
        items = []
        for dealer in sites:
            if dealer != site:
                sealed = shares[dealer].shares
                tree = MerkleTree([share.leaf() for share in sealed])
                at = [share.recipient for share in sealed].index(site)
                items.append(Delivered(shares[dealer].dealing, sealed[at].sealed, tree.path(at)))
        clients[site].on_delivery(Delivery(site, tuple(items)).encode())
        clients[site].mask(np.zeros(8, np.uint32))
    halves = {(0, 1, 2, 5): (0, 1, 5), (0, 1, 2, 3, 4): (2, 3, 4)}
    got = {1: 0, 2: 0}
    for survivors, told in halves.items():
        bitmap = Survivors(clients[0]._u1.bitmap(survivors)).encode()
        signed = [Signed.decode(clients[site].on_survivors(bitmap)) for site in told]
        consistency = Consistency(tuple(signed)).encode()
        for site in told:
            for reveal in Unmask.decode(clients[site].on_consistency(consistency)).reveals:
                if reveal.site == 5:
                    got[reveal.kind] += 1
    return got[1], got[2]


def test_the_attack_works_on_weak_thresholds_and_fails_on_ours(monkeypatch):
    """The defence is what stops it: with a threshold of half the sites the attack succeeds."""
    weak = classmethod(lambda cls, n, c, m: Thresholds(n, c, 3, 3, 3, 3))
    with monkeypatch.context() as patch:
        patch.setattr(Thresholds, "for_cohort", weak)
        assert split_view_attack() == (3, 3)
    with pytest.raises(Violation) as caught:
        split_view_attack()
    assert caught.value.code == "too-few-signatures"


def test_sites_shown_different_models_cannot_be_summed():
    """The model's hash is in every key: a second model makes the roster itself unacceptable."""
    sites = (0, 1, 2)
    odd = make_client(2, sites, round_ctx=context(model_hash=b"z" * 32).digest())
    even = [make_client(site, sites) for site in (0, 1)]
    adverts = tuple(Advert.decode(client.advertise()) for client in (*even, odd))
    for client in (*even, odd):
        with pytest.raises(Violation) as caught:
            client.on_roster(Roster(adverts).encode())
        assert caught.value.code == "bad-signature"
