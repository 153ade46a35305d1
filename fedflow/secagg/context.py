"""What a round is, as one hash that every key and signature of the round depends on.

The model's hash is part of it: sites that were shown different models derive different masks, so
their sum is noise (Pasquini, Francati, Ateniese, CCS 2022, describe the attack this stops).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fedflow.wire.codec import U8, U32, Bytes32, Message
from fedflow.wire.messages import Order, labelled_hash


@dataclass(frozen=True, slots=True)
class RoundContext:
    """The facts that name one round. Hashes are 32 bytes; ``kind`` is a small number (u8).

    ``order_hash`` covers the coordinator's whole order: dimension, deadline, sequence.
    """

    manifest_hash: bytes
    order_hash: bytes
    round: int
    attempt: int
    kind: int
    model_hash: bytes
    previous_transcript: bytes

    @classmethod
    def of(cls, order: Order) -> Self:
        """The context of the round that ``order`` asks for."""
        return cls(
            manifest_hash=order.manifest,
            order_hash=order.digest(),
            round=order.round,
            attempt=order.attempt,
            kind=order.kind,
            model_hash=order.model,
            previous_transcript=order.previous,
        )

    def digest(self) -> bytes:
        """32 bytes that name the round. Misuse when a field has the wrong size.

        H("fedflow/1 round" ‖ 0x00 ‖ manifest ‖ u32 round ‖ u32 attempt ‖ u8 kind ‖ model ‖
        previous transcript ‖ order).
        """
        fields = _Fields(
            self.manifest_hash,
            self.round,
            self.attempt,
            self.kind,
            self.model_hash,
            self.previous_transcript,
            self.order_hash,
        )
        return labelled_hash("round", fields.encode()[2:])


@dataclass(frozen=True, slots=True)
class _Fields(Message, type_id=20):
    manifest: Bytes32
    round: U32
    attempt: U32
    kind: U8
    model: Bytes32
    previous: Bytes32
    order: Bytes32
