"""What a site keeps of a job from round to round, in a private file beside its ledger.

::

    kept/<job>.safetensors    the tensors of :mod:`fedflow.learning.site_state`

The training process makes and reads its content. It never leaves the site. Losing it costs
accuracy, not privacy.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from fedflow.site.admission import Admitted
from fedflow.site.durable import private_folder, write_durably


def kept_path(site: Path, job: str) -> Path:
    """Where the site with this folder keeps what is its own of ``job``."""
    return site / "kept" / f"{job}.safetensors"


class Kept:
    """The file of one job; nothing where the plan keeps nothing at sites."""

    def __init__(self, site: Path, job: Admitted) -> None:
        self._path, self._keeps = kept_path(site, job.id), job.plan.keeps_at_sites

    def read(self) -> bytes:
        """What was kept last; empty when there is nothing."""
        if not self._keeps:
            return b""
        with contextlib.suppress(OSError):
            return self._path.read_bytes()
        return b""

    def write(self, own: bytes) -> None:
        """Keep ``own``, durably; without any, what there is stays."""
        if own:
            private_folder(self._path.parent)
            write_durably(self._path, own)
