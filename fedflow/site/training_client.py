"""The daemon's handle on its training process: one request at a time, cancellable.

Whatever ends the process or one of its children, the request is made once more: nothing was
charged for it, and what had arrived of an answer is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fedflow.errors import FedflowError, Refusal, Violation
from fedflow.site.trainer import MAX_HEADER, MAX_PAYLOAD, Trained, read_header

_PIECE = 1 << 18

_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int64": np.dtype("<i8")}
#: What the training process may see of the environment. No credential has a name in here.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")


#: The process, or its child with the request, ended before the answer did.
_DIED = "training-died"


class TrainingFailed(FedflowError):
    """The training process failed or died. The message is for the site's own log only."""


class TrainingClient:
    """Starts the training process when first needed and restarts it after it died.

    ``log`` receives the process's standard error.
    """

    def __init__(self, log: IO[bytes] | Path) -> None:
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[asyncio.subprocess.Process] | None = None
        self._busy = asyncio.Lock()

    async def start(self) -> None:
        """Start the process and wait until torch is loaded."""
        async with self._busy:
            await self._ensure()

    async def _ensure(self) -> asyncio.subprocess.Process:
        """The process, ready. Whoever gives up waiting does not stop its start: loading torch can
        take longer than a short round, and would begin anew in each.
        """
        if self._starting is None:
            if self._process is not None and self._process.returncode is None:
                return self._process
            self._starting = asyncio.create_task(self._spawn())
        starting = self._starting
        try:
            return await asyncio.shield(starting)
        finally:
            if starting.done():
                self._starting = None

    async def _spawn(self) -> asyncio.subprocess.Process:
        environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        log = open(self._log, "ab") if isinstance(self._log, Path) else self._log  # noqa: SIM115
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "fedflow.site.trainer",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        finally:
            if isinstance(self._log, Path):
                log.close()
        header, _ = await self._read(self._process)
        if not header.get("ready"):
            raise TrainingFailed("training-failed", "the training process did not start")
        return self._process

    async def run(
        self,
        task: str,
        *,
        workload: str,
        data: Path,
        plan: bytes,
        model: bytes = b"",
        own: bytes = b"",
        sites: int = 0,
        value_range: float = 0.0,
    ) -> Trained:
        """Carry out one request; its vector is float32[d] or int64[d], as the plan has it.

        Raises Refusal when the data or request is unusable, TrainingFailed when the process failed.
        Cancelling the call ends the process, and with it whatever it held.
        """
        header = {
            "task": task,
            "workload": workload,
            "data": str(data),
            "plan": plan.decode(),
            "sites": sites,
            "value_range": value_range,
            "own": len(own),
        }
        async with self._busy:
            answer, payload = await self._answered(header, model + own)
            if answer.get("code") == _DIED:
                del payload
                answer, payload = await self._answered(header, model + own)
        del model
        if answer.get("ok") is True:
            return _trained(answer, payload)
        code, message = str(answer.get("code")), str(answer.get("message"))
        if answer.get("family") == "refusal":
            raise Refusal(code, message)
        raise TrainingFailed(code, message)

    async def _answered(
        self, header: dict[str, Any], model: bytes
    ) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
        """One answer, whole; a process that ended before it reads as one that says so."""
        process: asyncio.subprocess.Process | None = None
        try:
            process = await self._ensure()
            await self._send(process, header, model)
            return await self._read(process)
        except TrainingFailed as error:
            await self._kill()
            if error.code != _DIED:
                raise
            return {"ok": False, "code": _DIED, "message": error.message}, np.empty(0, np.uint8)
        except BaseException:
            if process is not None:  # it works on what nobody waits for any more
                await self._kill()
                self._starting = asyncio.create_task(self._spawn())  # for the next request
            raise

    def forget(self) -> None:
        """Let go of loaded data, for instance after a session. Does nothing during a request."""
        process = self._process
        if process is None or process.returncode is not None or self._busy.locked():
            return
        if process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(_frame_start({"task": "forget"}, 0))

    @staticmethod
    async def _send(
        process: asyncio.subprocess.Process, header: dict[str, Any], model: bytes
    ) -> None:
        if process.stdin is None:
            raise TrainingFailed("training-failed", "the training process has no input")
        whole = memoryview(model)
        try:
            process.stdin.write(_frame_start(header, len(model)))
            for at in range(0, len(whole), _PIECE):
                process.stdin.write(whole[at : at + _PIECE])
                await process.stdin.drain()  # piece by piece: the pipe's buffer stays small
            await process.stdin.drain()
        except ConnectionError:  # an OSError, but not the exchange's
            raise TrainingFailed(_DIED, "the training process ended") from None

    @staticmethod
    async def _read(
        process: asyncio.subprocess.Process,
    ) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
        """One frame. The payload is read in pieces into one array, never held twice."""
        stream = process.stdout
        if stream is None:
            raise TrainingFailed("training-failed", "the training process has no output")
        try:
            size = int.from_bytes(await stream.readexactly(4), "big")
            if size > MAX_HEADER:
                raise Violation("bad-frame", "the training process sent a broken frame")
            header = read_header(await stream.readexactly(size))
            size = int.from_bytes(await stream.readexactly(8), "big")
            if size > MAX_PAYLOAD:
                raise Violation("bad-frame", "the training process sent a broken frame")
            payload, at = np.empty(size, np.uint8), 0
            while at < size:
                piece = await stream.read(min(_PIECE, size - at))
                if not piece:
                    raise TrainingFailed(_DIED, "the training process ended")
                payload[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)
            return header, payload
        except (asyncio.IncompleteReadError, ConnectionError):
            raise TrainingFailed(_DIED, "the training process ended") from None

    async def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._process.wait())

    async def close(self) -> None:
        """End the process."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        await self._kill()


def _trained(answer: dict[str, Any], payload: npt.NDArray[np.uint8]) -> Trained:
    dtype, kept = _DTYPES.get(str(answer.get("dtype"))), answer.get("own", 0)
    end = payload.size - kept if isinstance(kept, int) else -1
    if dtype is None or not 0 <= end <= payload.size or end % dtype.itemsize:
        raise TrainingFailed("bad-frame", "the training process sent an unknown dtype or size")
    return Trained(payload[:end].view(dtype), payload[end:].tobytes())


def _frame_start(header: dict[str, Any], size: int) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + text + size.to_bytes(8, "big")
