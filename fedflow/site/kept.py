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


def kept_bytes(site: Path, job: str) -> bytes:
    """What the site with this folder kept last of ``job``; empty when there is nothing."""
    with contextlib.suppress(OSError):
        return _path(site, job).read_bytes()
    return b""


def _path(site: Path, job: str) -> Path:
    return site / "kept" / f"{job}.safetensors"


class Kept:
    """The file of one job; nothing where the plan keeps nothing at sites."""

    def __init__(self, site: Path, job: Admitted) -> None:
        self._site, self._job, self._keeps = site, job.id, job.plan.keeps_at_sites

    def read(self) -> bytes:
        """What was kept last; empty when there is nothing."""
        return kept_bytes(self._site, self._job) if self._keeps else b""

    def write(self, own: bytes) -> None:
        """Keep ``own``, durably; without any, what there is stays."""
        if own:
            path = _path(self._site, self._job)
            private_folder(path.parent)
            write_durably(path, own)
