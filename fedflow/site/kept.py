"""What a site keeps of a job from round to round, in a private file beside its ledger.

::

    kept/<job>.safetensors    the tensors of :mod:`fedflow.learning.site_state`

It never leaves the site. Losing it costs accuracy, not privacy.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fedflow.errors import Violation
from fedflow.learning.model_file import Arrays, decode_model, encode_model, spec_of
from fedflow.learning.server_state import model_spec_of
from fedflow.learning.site_state import after_round, site_spec
from fedflow.site.admission import Admitted
from fedflow.site.durable import private_folder, write_durably
from fedflow.wire.messages import Order


class Kept:
    """The file of one job; nothing where the plan's strategy keeps nothing."""

    def __init__(self, folder: Path, job: Admitted) -> None:
        self._path, self._job = folder / f"{job.id}.safetensors", job

    def read(self) -> bytes:
        """What was kept last; empty when there is nothing."""
        if not self._job.plan.keeps_at_sites:
            return b""
        with contextlib.suppress(OSError):
            return self._path.read_bytes()
        return b""

    def after(
        self, order: Order, model: bytes, own: bytes, vector: npt.NDArray[Any]
    ) -> Arrays | None:
        """What is to be kept once ``vector``, trained from ``model`` and ``own``, is in a sum."""
        plan, spec = self._job.plan, spec_of(model)
        return after_round(
            decode_model(model, spec),
            self._decoded(own, model_spec_of(spec, plan)),
            vector,
            plan,
            sites=len(self._job.manifest.roster),
            value_range=order.value_range,
        )

    def write(self, arrays: Arrays | None) -> None:
        """Keep ``arrays``, durably."""
        if arrays is not None:
            private_folder(self._path.parent)
            write_durably(self._path, encode_model(arrays))

    def _decoded(self, own: bytes, model: Any) -> Arrays | None:
        spec = site_spec(model, self._job.plan)
        with contextlib.suppress(Violation):
            return decode_model(own, spec) if own and spec else None
        return None
