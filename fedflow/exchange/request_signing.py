"""How a relay knows who asks: one signed header per request.

A member's Ed25519 key signs method, target, SHA-256 of the body, time and a nonce. So nobody can
change a request on its way, send it later, or send it twice; and there is no password or token that
could be stolen. The relay learns nothing that it could use in the member's name.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import Annotated, ClassVar

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import Violation
from fedflow.wire.codec import U64, Bytes32, Fixed, Message, Text

SCHEME = "Fedflow"
#: How far a request's time may be from the relay's clock (seconds).
WINDOW_SECONDS = 120.0
MAX_TARGET = 4096
_HEADER = re.compile(
    SCHEME + r" key=(?P<key>[0-9a-f]{64}), time=(?P<time>[0-9]{1,15}),"
    r" nonce=(?P<nonce>[0-9a-f]{32}), body=(?P<body>[0-9a-f]{64}),"
    r" signature=(?P<signature>[0-9a-f]{128})"
)


@dataclass(frozen=True, slots=True)
class RelayRequest(Message, type_id=80):
    """What is signed. ``time`` is in milliseconds since the epoch, ``body`` the body's SHA-256.

    ``target`` is the path from ``/v1/`` on, with the query, byte for byte as it is sent.
    """

    SEAL: ClassVar[str] = "relay request"

    method: Annotated[str, Text(8)]
    target: Annotated[str, Text(MAX_TARGET)]
    body: Bytes32
    time: U64
    nonce: Annotated[bytes, Fixed(16)]


@dataclass(frozen=True)
class Signed:
    """A request and who says to have signed it. Nothing is checked yet."""

    key: bytes
    request: RelayRequest
    signature: bytes

    def verify(self) -> None:
        """Violation ``bad-signature`` unless the key signed exactly this request."""
        PublicKey(self.key).verify(RelayRequest.SEAL, self.request.encode(), self.signature)


def sign_request(
    identity: Identity, method: str, target: str, body: bytes = b"", *, now: float | None = None
) -> str:
    """The ``Authorization`` header for one request; every call makes another nonce."""
    request = RelayRequest(
        method,
        target,
        hashlib.sha256(body).digest(),
        int((time.time() if now is None else now) * 1000),
        secrets.token_bytes(16),
    )
    signature = identity.sign(RelayRequest.SEAL, request.encode())
    return (
        f"{SCHEME} key={identity.public.hex()}, time={request.time}, nonce={request.nonce.hex()},"
        f" body={request.body.hex()}, signature={signature.hex()}"
    )


def read_header(header: str, method: str, target: str) -> Signed:
    """What a header claims for this method and target; Violation when it cannot be read."""
    found = _HEADER.fullmatch(header)
    if found is None or len(target) > MAX_TARGET or not target.isascii():
        raise Violation("bad-authorization", "the request is not signed as a relay expects")
    request = RelayRequest(
        method,
        target,
        bytes.fromhex(found["body"]),
        int(found["time"]),
        bytes.fromhex(found["nonce"]),
    )
    return Signed(bytes.fromhex(found["key"]), request, bytes.fromhex(found["signature"]))
