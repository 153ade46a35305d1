"""Finds the coordinator's newest order: both sides look for it when they start in mid-job."""

from __future__ import annotations

import contextlib

from fedflow.crypto.identity import PublicKey
from fedflow.errors import FedflowError
from fedflow.exchange import layout
from fedflow.exchange.base import Exchange
from fedflow.wire.messages import Order
from fedflow.wire.sealed import unseal


def newest_order(
    exchange: Exchange, job: str, manifest: bytes, coordinator: PublicKey
) -> Order | None:
    """The highest-numbered order that ``coordinator`` signed for this manifest and this place.

    Whoever can write to the exchange can invent folders: only signed orders count. None without
    any; OSError while the exchange is down.
    """
    for sequence in reversed(layout.sequences(exchange.list(layout.rounds(job)))):
        with contextlib.suppress(FedflowError):
            data = exchange.get(layout.order(job, sequence), layout.MAX_SEALED_BYTES) or b""
            order = unseal(Order, data, coordinator)
            if (order.manifest, order.sequence) == (manifest, sequence):
                return order
    return None
