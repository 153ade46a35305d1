"""Replicated state: from one state of the job and one opened sum to the next state. Pure.

A state is named by the transcript it ends in, so a job's history is a tree: a coordinator that
died may go on from an earlier state and leave a branch behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Misuse, Violation
from fedflow.learning.groups import check_asked
from fedflow.learning.model_file import ModelSpec, encode_model, model_digest, unflatten
from fedflow.learning.plan import Plan
from fedflow.learning.server_state import (
    CLIPPING_NORM,
    ROUND,
    memory_views,
    model_spec_of,
    rounds_done,
)
from fedflow.learning.strategy import next_model
from fedflow.learning.value_range import next_range
from fedflow.secagg.context import RoundContext
from fedflow.secagg.transcript import Transcript
from fedflow.wire.messages import Kind, Manifest, Order

START = bytes(32)


@dataclass(frozen=True, slots=True)
class State:
    """What a history ends in.

    ``head`` is the digest of its last transcript (32 zero bytes before the first), ``sequence`` the
    number of that transcript's order, ``model`` the SHA-256 of the current model's file, and
    ``value_range`` what the updates of the next training round are clamped to.
    """

    head: bytes
    sequence: int
    model: bytes
    value_range: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What fixes every step, from the manifest: the plan, the model's shape, the sites' keys.

    ``spec`` is that of the whole model file (:mod:`fedflow.learning.server_state`).
    """

    manifest: Manifest
    plan: Plan
    spec: ModelSpec

    def __post_init__(self) -> None:
        model = model_spec_of(self.spec, self.plan)
        same = (self.spec.digest(), model.dimension) == (
            self.manifest.model_spec,
            self.manifest.dimension,
        )
        if not same:
            raise Violation("model-mismatch", "the first model's shape is not the manifest's")

    @property
    def sites(self) -> int:
        """Sites in the roster: the most that a sum can be over."""
        return len(self.manifest.roster)


def first_state(manifest: Manifest) -> State:
    """The state before any sum: the first model and range, as the authority signed them."""
    return State(START, 0, manifest.initial_model, manifest.value_range)


def check_order(state: State, order: Order) -> None:
    """Violation unless ``order`` asks for a sum on exactly this state's model and range.

    Codes: ``wrong-model`` for another model or range, ``broken-history`` for a number not above
    the state's. Misuse when the order builds on another state.
    """
    if order.previous != state.head:
        raise Misuse("the order builds on another state")
    if order.sequence <= state.sequence:
        raise Violation("broken-history", "the order is older than the sum it builds on")
    if order.model != state.model:
        raise Violation("wrong-model", "the order's model is not the one its history produces")
    if order.value_range != state.value_range:
        raise Violation("wrong-model", "the order's range is not the one its history produces")


def check_due(memory: Mapping[str, NDArray[np.float32]], order: Order) -> None:
    """Violation ``wrong-round`` unless a training order's round is the one its model is due for.

    ``memory`` holds the tensors of the model file, or its memory alone. Where that counts rounds,
    they decide who is asked and which coordinates are sent; elsewhere all rounds are alike.
    """
    if ROUND in memory and rounds_done(memory) != order.round - 1:
        raise Violation("wrong-round", "the order's round is not the one its model is due for")


def advance(
    rules: Rules,
    state: State,
    order: Order,
    transcript: Transcript,
    vector: NDArray[np.float32],
    total: NDArray[np.uint32] | None,
) -> tuple[State, NDArray[np.float32]]:
    """The state after the sum of ``order``, and its model file's tensors as float32[D].

    ``vector`` float32[D] is the model of ``state``, with what the server's optimiser remembers;
    ``total`` uint32 the opened sum that a verified ``transcript`` names, which an evaluation does
    not need. Violation when the order does not follow from the state, the transcript is of another
    round, or the sum makes no model.
    """
    check_order(state, order)
    if transcript.round_ctx != RoundContext.of(order).digest():
        raise Violation("other-round", "the transcript is of another round")
    head, sequence = transcript.digest(), order.sequence
    if Kind(order.kind) is Kind.EVALUATE:
        return State(head, sequence, state.model, state.value_range), vector
    if total is None or total.shape != (order.dimension,):
        raise Misuse("a training round's history needs its sum")
    count, plan, now = len(transcript.survivors), rules.plan, state.value_range
    dimension = rules.manifest.dimension
    check_asked(plan, order, [entry.index for entry in rules.manifest.roster])
    try:
        check_due(memory_views(vector, plan, dimension), order)
        after = next_model(vector, total, count, plan, now, sites=rules.sites, dimension=dimension)
        memory = memory_views(after, plan, dimension)
        norm = memory.get(CLIPPING_NORM)
        following = next_range(
            plan,
            now,
            total,
            count,
            sites=rules.sites,
            initial=rules.manifest.value_range,
            clipping_norm=None if norm is None else float(norm[0]),
        )
        digest = model_digest(model_file(after, rules.spec))
    except Misuse as error:
        raise Violation("bad-sum", f"the sum makes no model: {error.message}") from None
    return State(head, sequence, digest, following), after


def model_file(vector: NDArray[np.float32], spec: ModelSpec) -> bytes:
    """The model file of a parameter vector; equal vectors give equal bytes."""
    return encode_model(unflatten(vector, spec))
