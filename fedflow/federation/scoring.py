"""Scoring a trained model again: where the model comes from, and the plan of such a job.

A scoring job is a job of its own (:mod:`flows.evaluation`): its plan has no rounds, its first model
is the trained one. Models are files named by their digest, so where one was found does not matter;
which one is meant by "the model of that job" is read in what its coordinator signed.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedflow.coordinator.job import load_job
from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Refusal, Violation
from fedflow.exchange import Exchange, layout
from fedflow.exchange.base import get_blob
from fedflow.learning.plan import Plan
from fedflow.wire.messages import JOB_ID, JobEnd
from fedflow.wire.sealed import unseal

_DIGEST = re.compile("[0-9a-f]{64}")


def scoring_plan(plan: Plan) -> Plan:
    """``plan`` without training rounds: what a model of it is scored by.

    Sites keep nothing for a job in which they do not train, so there are no models of their own to
    be scored. Refusal ``local-layers`` where that leaves the model in part.
    """
    if plan.training.local_layers:
        raise Refusal(
            "local-layers",
            "the model is in part at the sites (training.local_layers): it can only be scored in"
            " the job that trains it",
        )
    evaluation = plan.evaluation.model_copy(update={"personalised": False})
    described = plan.plan.model_copy(update={"rounds": 0})
    return plan.model_copy(update={"plan": described, "evaluation": evaluation})


def final_model(exchange: Exchange, job: str, authority: PublicKey) -> bytes:
    """The model that ``job`` ended with. Refusal ``not-finished`` for one that was not completed.

    InputError when there is no such job; OSError while the exchange is away.
    """
    loaded = load_job(exchange, job, authority)
    data = exchange.get(layout.end(job), layout.MAX_SEALED_BYTES)
    if data is None:
        raise Refusal(
            "not-finished", f"the job {job} has not ended; a model of it is named by its digest"
        )
    end = unseal(JobEnd, data, PublicKey(loaded.manifest.coordinator))
    if end.manifest != loaded.digest:
        raise Violation("manifest-mismatch", f"the end of {job} in the exchange is of another job")
    if end.outcome != "completed":
        raise Refusal(
            "not-finished",
            f"the job {job} ended as {end.outcome}; to score the model it had then, name it by its"
            f" digest: {end.model.hex()}",
        )
    found = _blob(exchange, job, end.model)
    if found is None:
        raise Refusal("no-model", f"the final model of {job} is not in the exchange any more")
    return found


def is_digest(name: str) -> bool:
    """Whether ``name`` is a SHA-256 in hex rather than a path."""
    return _DIGEST.fullmatch(name) is not None


def stored_model(exchange: Exchange, digest: str) -> bytes:
    """The model of this SHA-256 (64 hex digits), of any job in the exchange.

    InputError when there is none; OSError while the exchange is away.
    """
    for job in filter(JOB_ID.fullmatch, exchange.list("jobs")):
        if (found := _blob(exchange, job, bytes.fromhex(digest))) is not None:
            return found
    raise InputError(f"no job in the exchange has the model {digest}", field="--evaluate")


def read_model(path: Path) -> bytes:
    """A model file; InputError when it cannot be read or is larger than any model."""
    try:
        with open(path, "rb") as file:
            data = file.read(layout.MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            field="--evaluate",
            allowed="a model file, or the SHA-256 of a model in the exchange",
        ) from None
    if len(data) > layout.MAX_MODEL_BYTES:
        raise InputError("is larger than any model", where=str(path), field="--evaluate")
    return data


def _blob(exchange: Exchange, job: str, digest: bytes) -> bytes | None:
    return get_blob(exchange, layout.blob(job, digest), digest, layout.MAX_MODEL_BYTES)
