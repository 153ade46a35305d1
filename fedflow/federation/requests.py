"""Asking to be a member: a small file signed by the key it asks for."""

from __future__ import annotations

import time

import fedflow
from fedflow.crypto.identity import Identity
from fedflow.wire.membership import CONSENT_LABEL, JoinRequest, Role, RotationRequest
from fedflow.wire.sealed import seal


def join_request(identity: Identity, role: Role, label: str) -> bytes:
    """A sealed request to join as ``role`` under ``label``."""
    made = int(time.time())
    return seal(
        identity, JoinRequest(role, label, identity.public.raw, made, fedflow.__version__[:32])
    )


def rotation_request(old: Identity, new: Identity, label: str) -> bytes:
    """A sealed request that ``new`` take the place of ``old``, signed by both."""
    made = int(time.time())
    agreed = RotationRequest.agreed(label, old.public.raw, new.public.raw, made)
    request = RotationRequest(
        label,
        old.public.raw,
        new.public.raw,
        made,
        fedflow.__version__[:32],
        new.sign(CONSENT_LABEL, agreed),
    )
    return seal(old, request)
