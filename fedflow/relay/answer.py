"""An answer other than success: a status, a word for machines, a sentence for people."""

from __future__ import annotations

import json
import math

from fedflow.errors import FedflowError, Violation

_STATUS = {"busy": 503, "already-put": 409, "too-long": 413, "damaged": 500}


class Answer(Exception):
    """Ends a request. ``retry_after`` is in seconds; 0 for none."""

    def __init__(self, status: int, code: str, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason
        self.retry_after = math.ceil(retry_after)

    def body(self) -> bytes:
        """What is sent."""
        return json.dumps({"code": self.code, "reason": self.reason}).encode()


def of_error(error: FedflowError) -> Answer:
    """The answer to a request that was refused, or whose bytes are not valid."""
    status = _STATUS.get(error.code, 400 if isinstance(error, Violation) else 403)
    return Answer(status, error.code, error.message, 1.0 if status == 503 else 0.0)
