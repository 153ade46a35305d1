"""The training process: near the data and the model, and it knows no key and no network.

``python -m fedflow.site.trainer`` imports torch and Opacus once. Children of it hold the data and
answer one request each (:mod:`fedflow.site.loaded_data`), so a crash, an out-of-memory kill or a
leak ends with the request. The daemon talks to it over its standard input and output in frames (see
:func:`read_frame`); nothing is unpickled.

Request header: ``task`` (check, train, evaluate), ``workload``, ``data`` (path), ``plan``
(canonical JSON), ``sites`` and ``value_range`` of the round, ``own``. The payload is the model file
and after it, in the last ``own`` bytes, what the site kept. Reply header: ``ok``, ``dtype`` and
``own``; the payload is the vector of :func:`fedflow.learning.contribution.contribution` and after
it, in the last ``own`` bytes, the file that the site is to keep once the vector is in a sum. Or,
without ``ok``, ``code`` and ``message``, for this site's own log only. The task ``forget`` has no
reply: the data are let go of.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from fedflow.errors import FedflowError, Misuse, Refusal, Violation
from fedflow.site.loaded_data import Died, Holders
from fedflow.tied import die_with_parent

if TYPE_CHECKING:
    from fedflow.learning.workload import PersonData, Workload

MAX_HEADER = 1 << 20
MAX_PAYLOAD = 1 << 31


class Trained(NamedTuple):
    """What a request gives: its ``vector``, and the file to keep once that is in a sum, if any."""

    vector: npt.NDArray[Any]
    own: bytes = b""


def write_frame(stream: BinaryIO, header: dict[str, Any], *payload: bytes | memoryview) -> None:
    """``u32 length ‖ JSON ‖ u64 length ‖ payload``, flushed.

    The payload may come in parts. A view is one of single bytes.
    """
    text, size = json.dumps(header).encode(), sum(map(len, payload))
    stream.write(len(text).to_bytes(4, "big") + text + size.to_bytes(8, "big"))
    for part in payload:
        stream.write(part)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """One frame, or None at the end of the stream; Violation when it is cut short or too large."""
    start = stream.read(4)
    if not start:
        return None
    size = int.from_bytes(start, "big")
    if len(start) < 4 or size > MAX_HEADER:
        raise Violation("bad-frame", "the training process sent a broken frame")
    header = read_header(_exactly(stream, size))
    size = int.from_bytes(_exactly(stream, 8), "big")
    if size > MAX_PAYLOAD:
        raise Violation("bad-frame", "the training process sent a broken frame")
    return header, _exactly(stream, size)


def read_header(text: bytes) -> dict[str, Any]:
    """The JSON object of a frame; Violation ``bad-frame`` for anything else."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise Violation("bad-frame", "the training process sent a broken frame")
    return header


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise Violation("bad-frame", "the training process ended in the middle of a frame")
    return data


def load(workload: str, path: str) -> tuple[Workload, PersonData]:
    """The installed workload of that name, and its data from a file."""
    from fedflow.learning.workload import find_workload

    found = find_workload(workload)
    return found, found.load(path)


def perform(
    request: dict[str, Any],
    payload: bytes,
    loaded: tuple[Workload, PersonData] | None = None,
) -> Trained:
    """Carry out one request in this process. The vector of ``check`` is empty."""
    from fedflow.crypto.csprng import Csprng
    from fedflow.learning.clipping import check_trainable
    from fedflow.learning.contribution import contribution
    from fedflow.learning.first_model import decode_state, plan_spec
    from fedflow.learning.model_file import encode_model
    from fedflow.learning.objective import objective
    from fedflow.learning.plan import Plan
    from fedflow.learning.preprocessing import prepared_data
    from fedflow.learning.site_state import read_kept
    from fedflow.wire.messages import Kind

    plan = Plan.from_canonical(str(request["plan"]).encode())
    workload, data = loaded or load(str(request["workload"]), str(request["data"]))
    if request["task"] == "check":
        data = prepared_data(data, plan, workload)
        if not plan.is_method and plan.privacy.mechanism != "site":  # else no gradient is clipped
            check_trainable(objective(workload, plan), data.train, plan.privacy.unit)
        plan_spec(workload, plan)  # raises where the plan does not suit the model
        return Trained(np.empty(0, np.float32))
    kinds = {kind.word: kind for kind in Kind}
    if request["task"] not in kinds:
        raise Misuse(f"unknown task {request['task']!r}")
    end = len(payload) - int(request.get("own", 0))
    vector, own = contribution(
        workload,
        data,
        decode_state(payload[:end], workload, plan),
        plan,
        kinds[request["task"]],
        sites=int(request["sites"]),
        value_range=float(request["value_range"]),
        csprng=Csprng.from_os(),
        own=read_kept(payload[end:], workload, plan),
    )
    return Trained(vector, encode_model(own) if own else b"")


def _answer(
    out: BinaryIO, source: BinaryIO, loaded: Callable[[], tuple[Workload, PersonData]]
) -> None:
    frame = read_frame(source)
    if frame is None:  # the training process has ended
        return
    try:
        vector, own = perform(*frame, loaded())
        header = {"ok": True, "dtype": str(vector.dtype), "own": len(own)}
        write_frame(out, header, np.ascontiguousarray(vector).view(np.uint8).data, own)
    except FedflowError as error:
        family = "refusal" if isinstance(error, Refusal) else "error"
        _fail(out, error.code, error.message, family)
    except Exception as error:
        _fail(out, "training-failed", repr(error))


def _fail(out: BinaryIO, code: str, message: str, family: str = "error") -> None:
    write_frame(out, {"ok": False, "family": family, "code": code, "message": message})


def serve(source: BinaryIO, out: BinaryIO, holders: Holders[tuple[Workload, PersonData]]) -> None:
    """Pass requests from ``source`` on and answers back, until it closes."""
    while True:
        frame = read_frame(source)
        if frame is None:
            return
        header, model = frame
        if header.get("task") == "forget":
            holders.forget()
            continue

        def write(child: BinaryIO, header: dict[str, Any] = header, model: bytes = model) -> None:
            write_frame(child, header, model)

        try:
            holders.request(str(header.get("workload")), str(header.get("data")), write, out)
        except Died as died:
            if died.passed:  # half a frame cannot be mended: whoever reads sees that this ended
                raise SystemExit(1) from None
            _fail(out, "training-died", "the training process ended without an answer")
        del frame, model, write  # nothing of a request stays until the next one


def main() -> None:
    """Serve requests from standard input until it closes."""
    die_with_parent()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)  # no thread pool before a fork, and sites share cores politely
    import scipy.special  # noqa: F401  (warm: what a child needs is imported here)

    import fedflow.learning.contribution  # noqa: F401

    # Anything a library prints must not end up between frames.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon decides
    write_frame(out, {"ok": True, "ready": True})
    serve(sys.stdin.buffer, out, Holders(load, _answer, private=(0, out.fileno())))


if __name__ == "__main__":
    main()
