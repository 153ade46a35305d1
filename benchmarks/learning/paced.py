"""The workload ``paced``: that of ``randhie``, trained at a site's own pace.

Every step sleeps for as many seconds as the file ``pace`` beside the data says, so that a site is
slow whatever the number of cores it shares. It is installed for one run only: a folder on the
module path holds the package metadata that name it.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from fedflow.learning.randhie import RandHie
from fedflow.learning.workload import ENTRY_POINTS, PersonData

PACE = "pace"
_LARGEST_TRIAL = 8  #: units; what is tried of a model before training is no step, and not paced


class Paced(RandHie):
    """As ``randhie``, and slow."""

    name = "paced"

    def __init__(self) -> None:
        self.seconds = 0.0

    def load(self, path: str | Path) -> PersonData:
        """The site's rows; from now on steps take what the site's ``pace`` says."""
        self.seconds = float(Path(path).with_name(PACE).read_text())
        return super().load(path)

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats per row, after a while."""
        if len(scores) > _LARGEST_TRIAL:
            time.sleep(self.seconds)
        return super().loss(scores, y)


workload = Paced()


def install(folder: Path) -> None:
    """Make ``folder`` one that has the workload installed for whoever has it on the module path."""
    made = folder / "paced-1.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: paced\nVersion: 1\n")
    (made / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\npaced = {__name__}:workload\n")
