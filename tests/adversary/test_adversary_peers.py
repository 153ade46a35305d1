"""Failures found in other systems (read in their source or run unmodified, November 2026), each
turned into an attack on ours. Every test names the system and the fact, and shows that here it is
refused or impossible."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import numpy as np
import pytest
import source_scan
from aggregation_rounds import Round, context, identity, make_client, mask, roster_of
from plans import make_plan
from scipy import stats

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.crypto.kdf import pair_mask_key, self_mask_key
from fedflow.crypto.masks import add_masks
from fedflow.crypto.suites import suite
from fedflow.errors import Misuse, Refusal, Violation
from fedflow.learning.plan import Plan
from fedflow.privacy.accounting import choose_order
from fedflow.privacy.events import ReleaseEvent
from fedflow.privacy.ledger import Ledger
from fedflow.secagg.messages import (
    Advert,
    Consistency,
    Masked,
    Reveal,
    Roster,
    Signed,
    Survivors,
    Unmask,
)
from fedflow.secagg.params import COMPLETE_LIMIT, Thresholds
from fedflow.secagg.quantise import Quantiser, integer_limit
from fedflow.secagg.states import ClientState, Leg
from fedflow.site.policy import Policy, check_plan

SITES = (0, 1, 2, 3, 4)
FALSE_ALARM = 1e-7


def mask_of(key: bytes, words: int) -> np.ndarray:
    out = np.zeros(words, np.uint32)
    add_masks(out, [key], [1])
    return out


def test_flower_mask_seeds_folded_to_28_bits():
    """Flower 1.41, SecAgg+: the seed of a pair's mask is folded to 28 bits, so a server finds it by
    trying them all. Here a mask key has 256 bits and each of them changes the whole mask."""
    key = self_mask_key(bytes(32), bytes(32), 0)
    whole = mask_of(key, 4096)
    for bit in range(256):
        changed = bytearray(key)
        changed[bit // 8] ^= 1 << bit % 8
        other = mask_of(bytes(changed), 4096)
        differing = int(np.unpackbits((whole ^ other).view(np.uint8)).sum())
        assert abs(differing - 65_536) < 6.5 * 181  # half of 131,072 bits; 6.5 sigma
    for made in (self_mask_key, lambda s, c, i: pair_mask_key(s, c, i, i + 1)):
        secret = bytearray(32)
        keys = {made(bytes(secret), bytes(32), 0)}
        for bit in range(256):
            flipped = bytearray(secret)
            flipped[bit // 8] ^= 1 << bit % 8
            keys.add(made(bytes(flipped), bytes(32), 0))
        assert len(keys) == 257


def test_flower_mersenne_twister_and_numpy_generators_as_mask_generator():
    """Flower 1.41 expands masks with the Mersenne twister; SecretFlow and declearn with numpy's
    generators: 624 words of one mask give all the others. Here no module of the package can reach a
    general-purpose generator, and masks are AES-256-CTR."""
    for path, tree in source_scan.modules():
        found = source_scan.imports(tree)
        assert not found & {"random", "numpy.random", "torch.random"}, path
        called = source_scan.calls(tree)
        bad = {c for c in called if ".random." in c or c.startswith("random.") or "randn" in c}
        assert not {c for c in bad if not c.startswith("secrets.")}, (path, bad)
    stream = mask_of(bytes(32), 8)
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    plain = Cipher(AES(bytes(32)), CTR(bytes(16))).encryptor().update(bytes(32))
    assert stream.tobytes() == plain


def test_flower_unsigned_relayed_keys():
    """Flower 1.41 relays clients' public keys unsigned, so the server can put its own there.
    Here a key without the site's signature over this very round is refused by every site."""
    clients = {site: make_client(site, SITES) for site in SITES}
    adverts = {site: Advert.decode(client.advertise()) for site, client in clients.items()}
    servers = suite(1).new_mask_keys(Csprng.from_os()).public
    adverts[3] = dataclasses.replace(adverts[3], mask_key=servers)
    for client in clients.values():
        with pytest.raises(Violation) as caught:
            client.on_roster(Roster(tuple(adverts.values())).encode())
        assert caught.value.code in ("bad-signature", "left-out")
        assert client.state == ClientState.FAILED


def test_flower_no_consistency_leg():
    """Flower 1.41 and fcp's open source have no consistency leg: sites answer whatever survivor
    list they are shown. Here no answer leaves without the signatures of enough survivors."""
    rounds = Round(SITES, colluders=1)
    survivors = rounds.masked()
    signed = [Signed.decode(rounds.clients[s].on_survivors(survivors)) for s in SITES]
    need = rounds.clients[0]._u1.thresholds.signatures
    for count in (0, 1, need - 1):
        client = rounds.clients[count]
        with pytest.raises(Violation) as caught:
            client.on_consistency(Consistency(tuple(signed[:count]), ()).encode())
        assert caught.value.code == "too-few-signatures"


def test_flower_a_site_named_both_active_and_dead():
    """Flower 1.41: a client named in both lists has both its shares handed over, which opens its
    vector. Here there is one list; who is dropped follows from it, and an answer has no room for
    two shares of one site."""
    rounds = Round(SITES, drops={Leg.MASKED: (4,)})
    consistency = rounds.signed()
    answer = Unmask.decode(rounds.clients[0].on_consistency(consistency))
    assert [reveal.kind for reveal in answer.reveals] == [1, 1, 1, 1, 2]
    one = answer.reveals[0]
    both = dataclasses.replace(answer, reveals=(one, Reveal(one.site, 2, one.share)))
    with pytest.raises(Violation) as caught:
        Unmask.decode(both.encode())
    assert caught.value.code == "not-ascending"
    assert {f.name for f in dataclasses.fields(Survivors)} == {"bitmap"}


@pytest.mark.parametrize(("n", "colluders", "minimum"), [(5, 0, 3), (10, 3, 4), (300, 20, 10)])
def test_flower_thresholds_from_the_server_without_a_floor(n, colluders, minimum):
    """Flower 1.41 clients take the threshold that the server sends, down to 1. Here no message
    carries one: every site computes it from the cohort it verified and its own minimum."""
    made = Thresholds.for_cohort(n, colluders, minimum)
    assert made.shares > colluders if n <= COMPLETE_LIMIT else made.shares > 1
    assert 2 * made.signatures > n + colluders
    assert made.signatures >= minimum
    for kind in (Roster, Consistency, Survivors, Masked, Unmask):
        names = {field.name for field in dataclasses.fields(kind)}
        assert not names & {"threshold", "minimum", "colluders", "shares"}
    clients = [make_client(site, SITES, minimum=4) for site in SITES]
    adverts = tuple(Advert.decode(client.advertise()) for client in clients)
    with pytest.raises(Violation) as caught:
        clients[0].on_roster(Roster(adverts[:3]).encode())
    assert caught.value.code == "cohort-too-small"


def test_flower_eight_bytes_per_parameter():
    """Flower 1.41 sends int64: 8 bytes per parameter. Here it is the ring's bits, 4 bytes or less,
    and a header that does not grow with the model but by 32 bytes per 65,536 coordinates."""
    for bits, size in ((32, 400_000), (16, 200_000), (8, 100_000)):
        rounds = Round((0, 1, 2), dimension=100_000, bits=bits)
        rounds.masked()
        assert sum(map(len, rounds.chunks[0])) == size
        assert len(rounds.sent[Leg.MASKED, 0]) < 300


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_flower_one_nan_becomes_a_number(value):
    """Flower 1.41: one NaN in one client's update becomes 3,273 in the model. Here the site
    refuses to encode it, and an operator sees why."""
    values = np.zeros(100, np.float32)
    values[50] = value
    with pytest.raises(Refusal) as caught:
        Quantiser(value_range=8.0, sites=10).encode(values, Csprng.from_os())
    assert caught.value.code == "non-finite"
    coding = make_plan().coding(4, 8.0)
    with pytest.raises(Refusal):
        coding.encode_span(values, 1.0, 0, 101, Csprng.from_os())


@pytest.mark.parametrize("bits", [32, 24, 16])
def test_flower_too_many_clients_silently_wrap(bits):
    """Flower 1.41 with 2,200 clients on defaults: the mean 0.0004 comes back as -215.6, silently.
    Here the scale follows from the number of sites, all at the limit do not wrap, one too many is
    refused, and a sum no such sites can have sent is a Violation."""
    sites = 2_200
    quantiser = Quantiser(value_range=8.0, sites=sites, bits=bits)
    for sign in (1.0, -1.0):
        one = quantiser.encode(np.full(50, sign * 1e9, np.float32), Csprng.from_os())
        total = np.zeros(50, np.uint32)
        for _ in range(sites):
            total += one
        mean = quantiser.decode(total & np.uint32((1 << bits) - 1)) / sites
        assert np.allclose(mean, sign * 8.0)
    assert str(sites) in quantiser.proof()
    small = quantiser.encode(np.full(50, 4e-4, np.float32), Csprng.from_os())
    total = np.zeros(50, np.uint32)
    rng = Csprng.from_os()
    for _ in range(sites):
        total += quantiser.encode(np.full(50, 4e-4, np.float32), rng)
    assert small.size == 50
    mean = quantiser.decode(total & np.uint32((1 << bits) - 1)) / sites
    assert np.abs(mean - 4e-4).max() < 7 * quantiser.rounding_stddev(sites)
    with pytest.raises(Violation):
        quantiser.decode(np.full(1, sites * quantiser.limit + 1, np.uint32))
    with pytest.raises(Misuse):
        integer_limit(1 << 15, 16)
    with pytest.raises(Refusal) as caught:
        make_plan(secure_aggregation__bits=8).coding(200, 8.0)
    assert caught.value.code == "too-few-bits"


def test_flower_a_loss_before_the_masked_upload_kills_the_round():
    """Flower 1.41: a client lost between sharing and upload ends the round. Here its mask secret
    is recovered and the sum is that of the others; so it is after a loss in any other leg."""
    for leg in Leg:
        rounds = Round(SITES, drops={leg: (2,)})
        outcome = rounds.run()
        assert np.array_equal(outcome.sum, rounds.plain_sum(outcome.survivors))
        assert (2 in outcome.survivors) == (leg in (Leg.SIGNED, Leg.UNMASK))


def test_openfl_one_scalar_masks_every_coordinate_of_every_round():
    """OpenFL 1.9: one random.random() masks all coordinates of all rounds, so differences of
    coordinates and of rounds are in clear. Here differences within and between rounds of one and
    the same vector are uniform."""
    words = 1 << 15
    vectors = []
    for attempt in (1, 2):
        same = {site: np.full(words, 7, np.uint32) for site in SITES}
        rounds = Round(
            SITES,
            dimension=words,
            round_ctx=context(attempt=attempt).digest(),
            vectors=same,
        )
        rounds.masked()
        vectors.append(np.frombuffer(b"".join(rounds.chunks[1]), np.uint32))
    for difference in (np.diff(vectors[0]), vectors[0] - vectors[1]):
        counts = np.bincount(difference.view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > FALSE_ALARM


def test_openfl_the_aggregator_reconstructs_all_seeds_before_training():
    """OpenFL 1.9: the aggregator has every mask before anything is masked. Here shares are sealed
    between sites, and none leaves before the vectors are in and the survivors are signed for."""
    rounds = Round(SITES)
    rounds.masked()
    before = [data for (leg, _), data in rounds.sent.items()]
    downs = [rounds.downs["roster"], *dict(rounds.downs["delivery"]).values()]
    held = [share for client in rounds.clients.values() for share in client._held.values()]
    assert len(held) == 25
    for pair in held:
        for share in pair:
            assert not any(share in data or share[1:] in data for data in (*before, *downs))


def test_fedml_keys_from_the_rank_and_raw_weights_beside_masked_ones():
    """FedML: keys come from np.random.seed(rank), and the raw weights travel beside the masked
    ones. Here two starts of one site share no key, and a masked message is hashes alone."""
    adverts = [
        Advert.decode(make_client(1, SITES, csprng=Csprng.from_os()).advertise()) for _ in range(3)
    ]
    assert len({key for a in adverts for key in (a.mask_key, a.share_key)}) == 6
    vector = np.arange(10_000, 10_000 + 4096, dtype=np.uint32)
    rounds = Round(SITES, dimension=4096, vectors=dict.fromkeys(SITES, vector))
    rounds.run()
    wire = b"".join(rounds.sent.values()) + b"".join(c for cs in rounds.chunks.values() for c in cs)
    for at in range(0, 4096 - 2, 64):
        assert vector[at : at + 2].tobytes() not in wire
    assert {field.name for field in dataclasses.fields(Masked)} == {
        "site",
        "delivered",
        "chunks",
        "signature",
    }


def test_appfl_one_secret_for_all_clients_float_masks_and_no_dropouts():
    """APPFL: one secret shared by all clients, so any client reads every other. Here a third site
    of the cohort has no key of a pair: all pair secrets and contexts differ, and masks are ring
    elements, so that a lost site costs nothing (see the dropout test above)."""
    rounds = Round(SITES)
    rounds.shares()
    for site in SITES:
        rounds.clients[site].on_delivery(dict(rounds.downs["delivery"])[site])
    pairs = {s: dict(c._secrets.pairs) for s, c in rounds.clients.items()}
    secrets = {pairs[a][b] for a in SITES for b in SITES if a < b}
    assert len(secrets) == 10
    for a in SITES:
        for b in SITES:
            assert a == b or pairs[a][b] == pairs[b][a]
    _, chunks = mask(rounds.clients[0], np.zeros(8, np.uint32))
    assert all(isinstance(chunk, bytes) and len(chunk) == 32 for chunk in chunks)


def test_fedbiomed_a_channel_key_published_with_the_library():
    """Fed-BioMed 6.3: the channel that carries keys starts from a private key in the library.
    Here the package holds no key: no PEM, no long hex constant but digests that say they are one,
    and identities are made on the machine that uses them."""
    import ast

    for path, tree in source_scan.modules():
        digests = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and all(isinstance(t, ast.Name) and t.id.endswith("SHA256") for t in node.targets)
        }
        for node in ast.walk(tree):
            if node in digests:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                assert "PRIVATE KEY-----" not in text, path
                digits = set(text.lower()) <= set("0123456789abcdef")
                assert not (digits and len(text) >= 64), (path, text[:20])
    assert Identity.generate().public != Identity.generate().public


def test_fedbiomed_no_dropouts_and_a_budget_that_is_a_todo(tmp_path):
    """Fed-BioMed 6.3: the site's budget is a to-do (its issue 375). Here it is a file of the site's
    own that survives a restart and refuses what it cannot pay."""
    identity, event = Identity.generate(), ReleaseEvent("gaussian", 1.0, 4.0, 1)
    ledger = Ledger.create(tmp_path / "ledger", identity, "alpha")
    order = choose_order(event, 2.0, 1e-5)
    ledger.open_account("a/train", epsilon=2.0, delta=1e-5, order=order)
    paid = 0
    while ledger.account_status("a/train").epsilon_left > 0.5:
        reserve(ledger, event, paid)
        paid += 1
        ledger.close()
        ledger = Ledger.open(tmp_path / "ledger", identity)
    assert paid >= 1
    with pytest.raises(Refusal) as caught:
        ledger.check("a/train", ReleaseEvent("gaussian", 1.0, 0.5, 1))
    assert caught.value.code == "budget-exhausted"
    assert ledger.account_status("a/train").epsilon_spent <= 2.0


def reserve(ledger: Ledger, event: ReleaseEvent, number: int):
    return ledger.reserve(
        "a/train",
        event,
        context=hashlib.sha256(b"%d" % number).digest(),
        job="job",
        manifest=bytes(32),
        round=number + 1,
        attempt=1,
        purpose="train",
        release=b"masked",
    )


def test_nvflare_one_secret_key_for_all_clients():
    """NVFLARE: homomorphic encryption under one secret key that every client has. There is no
    homomorphic encryption here. The part that applies: no secret of a round is known to two sites,
    but the pair secrets to the pair, and shares, of which fewer than the threshold say nothing."""
    rounds = Round(SITES)
    rounds.adverts()
    secrets = [c._secrets for c in rounds.clients.values()]
    assert len({s.mask.secret for s in secrets} | {s.seed for s in secrets}) == 10


def test_fcp_no_signatures():
    """Google's fcp (open source): messages of clients carry no signatures, so a server can speak
    for them. Here every message of a site is refused when one bit of it was changed on the way."""
    for leg in Leg:
        hits = []

        def tamper(at, site, data, leg=leg, hits=hits):
            if at == leg and site == 3:
                hits.append(1)
                return data[:-1] + bytes((data[-1] ^ 1,))
            return data

        rounds = Round(SITES, tamper=tamper)
        with pytest.raises(Violation):
            rounds.run()
        assert hits


def test_flower_example_counts_and_metrics_in_clear():
    """Flower 1.41 sends num_examples and metrics in clear beside the masked update. Here the weight
    is a masked coordinate: nothing on the wire changes its form with it."""
    coding = make_plan(strategy__weighting="declared").coding(5, 8.0)
    update = np.zeros(63, np.float32)
    wires = []
    for weight in (0.001, 0.77):
        words = {s: coding.encode(update, weight, Csprng.from_os()) for s in SITES}
        rounds = Round(SITES, dimension=64, vectors=words)
        outcome = rounds.run()
        total = coding.weight_steps(outcome.sum, 5, "declared") / coding.weights.limit
        assert abs(total - 5 * weight) < 1e-6
        wires.append([len(data) for _, data in sorted(rounds.sent.items())])
        sent = b"".join(rounds.sent.values())
        for form in (struct.pack("<d", weight), struct.pack(">d", weight), str(weight).encode()):
            assert form not in sent
    assert wires[0] == wires[1]


def test_flower_secagg_and_accounting_cannot_run_together():
    """Flower 1.41: SecAgg+ and its privacy accounting exclude each other. Here a plan without noise
    cannot be written, and a sum without secure aggregation does not exist."""
    raw = make_plan().model_dump()
    for change in (0.0, -1.0, float("nan"), float("inf")):
        raw["privacy"]["noise_multiplier"] = change
        with pytest.raises(ValueError):
            Plan.model_validate(raw)
    raw = make_plan().model_dump()
    for section in ("privacy", "secure_aggregation"):
        with pytest.raises(ValueError):
            Plan.model_validate({k: v for k, v in raw.items() if k != section})
    with pytest.raises(ValueError):
        Plan.model_validate(raw | {"secure_aggregation": {"bits": 32, "suite": "none"}})


def test_flip_a_filter_that_spends_a_huge_epsilon_in_one_round(tmp_path):
    """FLIP (its issue 1145): a stock privacy filter spent an epsilon of 70,333 in one round. Here
    the site's own policy refuses such a plan, and its ledger cannot pay for it."""
    loud = make_plan(privacy__noise_multiplier=0.01)
    with pytest.raises(Refusal) as caught:
        check_plan(policy_for(make_plan()), loud)
    assert "noise_multiplier" in caught.value.message
    ledger = Ledger.create(tmp_path / "ledger", Identity.generate(), "alpha")
    event = ReleaseEvent("gaussian", 1.0, 0.01, 1)
    order = choose_order(ReleaseEvent("gaussian", 1.0, 4.0, 1), 8.0, 1e-5)
    ledger.open_account("a/train", epsilon=8.0, delta=1e-5, order=order)
    with pytest.raises(Refusal) as caught:
        reserve(ledger, event, 0)
    assert caught.value.code == "budget-exhausted"
    assert ledger.account_status("a/train").epsilon_spent == 0.0


def policy_for(plan: Plan) -> Policy:
    import tomllib

    from fedflow.site.policy import template

    text = template(
        authority="ab" * 32,
        coordinators=["cd" * 32],
        workload=plan.plan.workload,
        dataset="visits",
        path="visits.csv",
        epsilon=8.0,
        delta=1e-5,
        plan=plan,
    )
    raw = tomllib.loads(text)
    for section in ("trust", "limits"):
        for name, value in raw[section].items():
            raw[section][name] = tuple(value) if isinstance(value, list) else value
    return Policy.model_validate(raw)


def test_every_identity_of_a_roster_is_its_own():
    """One key, one vote: a roster that lists one identity twice is our own caller's bug."""
    twice = roster_of(SITES) | {4: identity(3).public}
    with pytest.raises(Misuse):
        make_client(0, SITES, roster=twice)
