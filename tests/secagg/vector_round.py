"""The one deterministic round behind the frozen vectors, and what must be refused in it."""

from __future__ import annotations

import hashlib

import numpy as np
from aggregation_rounds import Round, make_client
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.errors import Violation
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.server import SecAggServer
from fedflow.secagg.states import Leg

SITES = (1, 2, 4, 7)
EVENTS = {
    "on_roster": "roster",
    "on_delivery": "delivery",
    "on_survivors": "survivors",
    "on_consistency": "consistency",
}


def signer(site: int) -> Identity:
    seed = hashlib.sha256(b"vector identity %d" % site).digest()
    return Identity(Ed25519PrivateKey.from_private_bytes(seed))


def vector(site: int) -> list[int]:
    """Five words that wrap, negative numbers and zeros among them."""
    return [0, site, 2**32 - site, 2**31, 123456789 * site % 2**32]


def new() -> Round:
    round_ = Round(
        SITES,
        minimum=3,
        dimension=5,
        drops={Leg.MASKED: [4]},
        vectors={site: np.array(vector(site), np.uint32) for site in SITES},
    )
    roster = {site: signer(site).public for site in SITES}
    round_.server = SecAggServer(
        round_ctx=round_.round_ctx, roster=roster, colluders=0, minimum=3, dimension=5
    )
    round_.clients = {
        site: make_client(
            site,
            SITES,
            minimum=3,
            dimension=5,
            identity=signer(site),
            roster=roster,
            csprng=Csprng.from_seed(hashlib.sha256(b"vector site %d" % site).digest()),
        )
        for site in SITES
    }
    return round_


def play() -> Round:
    round_ = new()
    round_.outcome = round_.run()  # type: ignore[attr-defined]
    return round_


def site_at(event: str) -> SecAggClient:
    """Site 1 of the round, waiting for ``event``."""
    round_ = new()
    steps = dict(zip(EVENTS, ("adverts", "shares", "masked", "signed"), strict=True))
    getattr(round_, steps[event])()
    return round_.clients[1]


def server_at(leg: Leg) -> SecAggServer:
    """The server, waiting for ``leg``."""
    round_ = new()
    steps = {Leg.SHARES: "adverts", Leg.MASKED: "shares", Leg.SIGNED: "masked"}
    if leg == Leg.UNMASK:
        round_.signed()
    elif leg != Leg.ADVERT:
        getattr(round_, steps[leg])()
    return round_.server


def spoiled(data: bytes) -> dict[str, bytes]:
    """One message, wrong in ways that each have their own name."""
    half = len(data) // 2
    return {
        "truncated": data[:-1],
        "trailing": data + b"\0",
        "empty": b"",
        "version": data[:1] + b"\2" + data[2:],
        "last_bit": data[:-1] + bytes([data[-1] ^ 1]),
        "middle": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :],
    }


def code_of(action) -> str:
    try:
        action()
    except Violation as violation:
        return violation.code
    return "accepted"


def bad_for_a_site(round_: Round) -> list[dict[str, str]]:
    cases = []
    for event, down in EVENTS.items():
        good = round_.downs[down]
        data = good[1] if isinstance(good, dict) else good
        for name, bad in spoiled(data).items():
            client = site_at(event)
            code = code_of(lambda c=client, e=event, b=bad: getattr(c, e)(b))
            assert code != "accepted", (event, name)
            cases.append(
                {"name": f"{event}_bad_{name}", "event": event, "data": bad.hex(), "code": code}
            )
    return cases


def bad_for_the_server(round_: Round) -> list[dict[str, str]]:
    cases = []
    for leg in Leg:
        for name, bad in spoiled(round_.sent[leg, 1]).items():
            server = server_at(leg)
            code = code_of(lambda s=server, b=bad: s.receive(b))
            assert code != "accepted", (leg, name)
            case = {"name": f"{leg}_bad_{name}", "leg": str(leg)}
            cases.append({**case, "data": bad.hex(), "code": code})
    return cases
