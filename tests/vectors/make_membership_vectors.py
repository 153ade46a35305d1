"""Writes membership.json beside this file: ``python tests/vectors/make_membership_vectors.py``.

Lists of members, requests, and the ledger's entry for a new key, built here a second time from the
published layout with the standard library and Ed25519 of ``cryptography``, not with fedflow's code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from make_vectors import sha

PATH = Path(__file__).parent / "membership.json"
NONE = bytes(32)


def signer(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(sha(name.encode()))


def public(name: str) -> bytes:
    return signer(name).public_key().public_bytes_raw()


def sign(name: str, label: str, body: bytes) -> bytes:
    return signer(name).sign(b"fedflow/1 " + label.encode() + b"\0" + body)


def text(value: str) -> bytes:
    return len(value.encode()).to_bytes(4, "big") + value.encode()


def u(value: int, width: int = 8) -> bytes:
    return value.to_bytes(width, "big")


def member(
    role: int = 1,
    label: str = "berlin",
    key: bytes | None = None,
    begin: int = 10,
    end: int = 20,
    revoked: int = 0,
    previous: bytes = NONE,
) -> bytes:
    key = public("berlin") if key is None else key
    return b"\x46\x01" + u(role, 1) + text(label) + key + u(begin) + u(end) + u(revoked) + previous


def roster(
    *members: bytes,
    name: str = "trial",
    serial: int = 7,
    authority: bytes | None = None,
) -> bytes:
    listed = u(len(members), 4) + b"".join(members)
    own = public("authority") if authority is None else authority
    return b"\x47\x01" + text(name) + u(serial, 4) + u(1_800_000_000) + listed + own


def join(role: int = 1, label: str = "berlin", key: bytes | None = None) -> bytes:
    key = public("berlin") if key is None else key
    return b"\x48\x01" + u(role, 1) + text(label) + key + u(15) + text("0.1.0")


def rotation(
    label: str = "berlin", old: str = "berlin", new: str = "next", by: str = "next", made: int = 16
) -> bytes:
    body = public(old) + public(new) + u(16) + label.encode()
    consent = sign(by, "rotation consent", body)
    return b"\x49\x01" + text(label) + public(old) + public(new) + u(made) + text("0.1.0") + consent


def rotated(seq: int = 3, previous: bytes | None = None, by: str = "next") -> bytes:
    before = sha(b"entry 2") if previous is None else previous
    agreed = u(seq) + before + public("berlin") + public("next")
    consent = sign(by, "ledger takeover", agreed)
    return b"\x38\x01" + u(seq) + before + u(1_800_000_000_000) + public("next") + consent


def sealed(body: bytes, name: str, label: str) -> bytes:
    return b"\x08\x01" + u(len(body), 4) + body + sign(name, label, body)


def good(body: bytes, name: str, label: str) -> dict[str, str]:
    return {"message": body.hex(), "sealed": sealed(body, name, label).hex()} | {
        "signer": public(name).hex()
    }


def bad(*cases: tuple[bytes, str]) -> list[dict[str, str]]:
    return [{"message": message.hex(), "code": code} for message, code in cases]


def vectors() -> dict[str, list[dict[str, Any]]]:
    old = member(revoked=12)
    heir = member(key=public("next"), previous=public("berlin"))
    lead = member(2, "lead", public("lead"))
    everybody = roster(old, heir, lead)
    asked, moved, entry = join(), rotation(), rotated()
    return {
        "member": [{"message": m.hex()} for m in (old, heir, lead)],
        "member_bad_message": bad(
            (member(0), "bad-member"),
            (member(4), "out-of-range"),
            (member(label="Berlin"), "bad-label"),
            (member(label=""), "bad-label"),
            (member(label="x" * 33), "too-long"),
            (member(begin=20, end=20), "bad-member"),
            (member(key=NONE), "bad-member"),
            (member(previous=public("berlin")), "bad-member"),
            (member()[:-1], "truncated"),
            (member() + b"\0", "trailing-bytes"),
            (b"\x46\x02" + member()[2:], "wrong-version"),
        ),
        "roster": [
            good(roster(), "authority", "federation roster"),
            good(everybody, "authority", "federation roster"),
        ],
        "roster_bad_message": bad(
            (roster(old, member()), "bad-federation"),  # a key twice
            (roster(member(), member(key=public("x"))), "bad-federation"),  # two current ones
            (roster(member(), heir), "bad-federation"),  # takes over from one that still counts
            (roster(heir), "bad-federation"),  # from one that is not listed
            (roster(member(2, revoked=12), heir), "bad-federation"),  # from another role
            (roster(member(label="x", revoked=12), heir), "bad-federation"),
            (
                roster(
                    old,
                    member(key=public("next"), previous=public("berlin"), revoked=13),
                    member(key=public("x"), previous=public("berlin")),
                ),
                "bad-federation",
            ),  # two heirs
            (roster(name="Trial"), "bad-label"),
            (roster(serial=0), "bad-federation"),
            (roster(member(0)), "bad-member"),
            (everybody[:-1], "truncated"),
        ),
        "roster_bad_signature": [
            {"sealed": data.hex(), "signer": public("authority").hex(), "code": "bad-signature"}
            for data in (
                sealed(everybody, "berlin", "federation roster"),
                sealed(everybody, "authority", "join request"),
                sealed(everybody, "authority", "federation roster")[:-1] + b"\0",
            )
        ],
        "join_request": [good(asked, "berlin", "join request")],
        "join_request_bad_message": bad(
            (join(0), "bad-member"),
            (join(label="-"), "bad-label"),
            (join(key=NONE), "bad-member"),
            (asked[:-1], "truncated"),
        ),
        "rotation_request": [good(moved, "berlin", "rotation request")],
        "rotation_request_bad_message": bad(
            (rotation(by="berlin"), "bad-signature"),
            (rotation(made=17), "bad-signature"),
            (rotation(new="berlin"), "bad-member"),
            (rotation(label="Berlin"), "bad-label"),
            (moved + b"\0", "trailing-bytes"),
        ),
        "rotated": [good(entry, "berlin", "ledger entry")],
        "rotated_bad_message": bad(
            (entry[:-1], "truncated"), (b"\x38\x02" + entry[2:], "wrong-version")
        ),
    }


def written(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(written(vectors()))
    print(PATH, PATH.stat().st_size)
