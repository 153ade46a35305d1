"""The frozen round: a change of any key, hash, mask or message byte shows here.

tests/vectors/make_vectors.py derives context, keys, commitments and masked vectors a second time,
from the published layout; the messages freeze the wire format.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import vector_round
from aggregation_rounds import context

from fedflow.errors import Violation
from fedflow.secagg.states import LEGS, ClientState, Leg
from fedflow.secagg.transcript import (
    Transcript,
    masked_vector,
    recompute_sum,
    verify_transcript,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "secagg.json").read_text())
LEGS_AND_SITES = [tuple(name.split()) for name in VECTORS["messages"]]


@pytest.fixture(scope="module")
def played():
    return vector_round.play()


def test_the_round_and_its_context(played):
    assert context().digest().hex() == VECTORS["round_ctx"]
    for site in (1, 2, 7):
        assert played.clients[site].context.hex() == VECTORS["context"]


@pytest.mark.parametrize(("leg", "site"), LEGS_AND_SITES)
def test_each_message_of_a_site(played, leg, site):
    assert played.sent[Leg(leg), int(site)].hex() == VECTORS["messages"][f"{leg} {site}"]


def test_all_messages_are_frozen(played):
    assert len(played.sent) == len(VECTORS["messages"])
    assert {leg for leg, _ in LEGS_AND_SITES} == set(LEGS)


@pytest.mark.parametrize("name", VECTORS["downs"])
def test_each_message_of_the_server(played, name):
    down, _, site = name.partition(" ")
    data = played.downs[down][int(site)] if site else played.downs[down]
    assert data.hex() == VECTORS["downs"][name]


def test_commitments_and_set_hashes(played):
    cohort = played.server._u1
    for dealing in played.outcome.transcript.dealings:
        assert dealing.commitment.hex() == VECTORS["commitments"][str(dealing.site)]
    assert cohort.set_hash("delivered", (1, 2, 4, 7)).hex() == VECTORS["delivered_hash"]
    assert cohort.set_hash("survivors", (1, 2, 7)).hex() == VECTORS["survivors_hash"]


@pytest.mark.parametrize("site", VECTORS["masked"])
def test_masked_vectors_are_what_the_layout_says(played, site):
    index, vector = masked_vector(played.sent[Leg.MASKED, int(site)])
    assert index == int(site)
    assert vector.tobytes().hex() == VECTORS["masked"][site]


def test_the_sum_and_the_transcript(played):
    assert played.outcome.sum.tolist() == VECTORS["sum"]
    data = bytes.fromhex(VECTORS["transcript"])
    transcript = Transcript.decode(data)
    assert transcript.digest().hex() == VECTORS["transcript_digest"]
    verify_transcript(
        transcript,
        round_ctx=bytes.fromhex(VECTORS["round_ctx"]),
        roster={site: vector_round.signer(site).public for site in vector_round.SITES},
        colluders=0,
        minimum=3,
    )
    stored = {
        int(name.split()[1]): bytes.fromhex(message)
        for name, message in VECTORS["messages"].items()
        if name.startswith("masked")
    }
    assert np.array_equal(recompute_sum(transcript, stored), VECTORS["sum"])


@pytest.mark.parametrize("case", VECTORS["site_bad"], ids=lambda case: case["name"])
def test_a_site_refuses(case):
    client = vector_round.site_at(case["event"])
    with pytest.raises(Violation) as caught:
        getattr(client, case["event"])(bytes.fromhex(case["data"]))
    assert caught.value.code == case["code"]
    assert client.state == ClientState.FAILED


@pytest.mark.parametrize("case", VECTORS["server_bad"], ids=lambda case: case["name"])
def test_the_server_refuses(case):
    server = vector_round.server_at(Leg(case["leg"]))
    missing = server.missing()
    with pytest.raises(Violation) as caught:
        server.receive(bytes.fromhex(case["data"]))
    assert caught.value.code == case["code"]
    assert server.missing() == missing
