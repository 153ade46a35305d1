"""What a refusal may say outside the site.

A reason leaves the site signed (to the exchange) and through the worker (to Prefect). It must not
quote data, so only refusals whose sentences are made of plan, policy and budget numbers pass as
they are; every other error leaves as its code and a fixed sentence, and the details stay in the
site's own log.
"""

from __future__ import annotations

from fedflow.errors import FedflowError, Violation
from fedflow.wire.codec import plain_text

#: Codes whose own sentence holds only public numbers and names.
_AS_WRITTEN = frozenset(
    {
        "policy",
        "budget-exhausted",
        "budget-mismatch",
        "ledger-rollback",
        "order-expired",
        "outside-window",  # one time: when this site's next window opens
        "not-in-roster",
        "unknown-authority",
        "unknown-coordinator",
        "unknown-workload",
        "manifest-expired",
        "manifest-mismatch",
        "too-few-bits",
        "too-few-sites",
        "replayed-order",
        "revoked-key",
    }
)

_FIXED = {
    "bad-input": "the site's data cannot be used for this workload; its operator finds the cause in"
    " the site's log",
    "training-died": "local training ended without a result",
    "training-failed": "local training failed; the cause is in the site's log",
    "bad-model": "the model file is not one that this workload accepts",
    "non-finite": "local training gave a value that is not finite; nothing was released",
}

#: Bytes of UTF-8: what a Decline and the worker's socket hold, whatever the sentence's alphabet.
MAX_REASON = 480


def public_reason(error: BaseException) -> tuple[str, str]:
    """The ``(code, sentence)`` of ``error`` that may leave the site."""
    if not isinstance(error, FedflowError):
        return "internal", f"unexpected {type(error).__name__} at the site; see the site's log"
    if error.code in _FIXED:
        return error.code, _FIXED[error.code]
    # A Violation describes what a peer sent, which the peer knows: it names no local data.
    if error.code in _AS_WRITTEN or isinstance(error, Violation):
        return error.code, plain_text(error.message, MAX_REASON)
    return error.code, "the site refused; the cause is in the site's log"
