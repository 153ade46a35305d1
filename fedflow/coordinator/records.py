"""What is told of a round afterwards, and the checkpoint a restarted coordinator goes on from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedflow.errors import Misuse
from fedflow.history import State


@dataclass
class RoundRecord:
    """The public facts of one round, as reports and screens show them.

    ``dropped`` sites were lost within the round; ``recovered`` are those of them whose masks had to
    be recovered; ``absent`` sites were not there when it began. ``rebuilt`` says that the
    coordinator that ran the round died, and the record was made from what it had published: times
    and bytes are not known. A record is ``finished`` when the round's evaluation, if the plan has
    one, came to an end.
    """

    number: int
    sites: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    training_seconds: float = 0.0
    auc: float | None = None
    auc_stderr: float | None = None
    bytes: dict[str, int] = field(default_factory=dict)
    attempts: int = 1
    aborted: bool = False
    reason: str = ""
    rebuilt: bool = False
    finished: bool = True

    def facts(self) -> dict[str, Any]:
        """As plain values, for the event log and the report."""
        return asdict(self)


@dataclass
class Tries:
    """Attempts at one sum: ``made`` orders, of which ``aborted`` ended by the protocol's rules.

    The others were cut short with the coordinator. They are counted apart, so that a restart does
    not use up what a round may try; but they are counted, because sites may have paid for them.
    """

    round: int
    kind: int
    made: int = 0
    aborted: int = 0

    @property
    def interrupted(self) -> int:
        """Orders that ended with their coordinator."""
        return self.made - self.aborted


@dataclass(frozen=True)
class Checkpoint:
    """The state after a step. ``sequence`` is that of the newest order."""

    manifest: bytes
    state: State
    sequence: int
    records: list[RoundRecord]
    tries: Tries | None = None

    def save(self, path: Path) -> None:
        """Replace the file at ``path``, atomically and durably."""
        raw: dict[str, Any] = {
            "manifest": self.manifest.hex(),
            "sequence": self.sequence,
            "previous": self.state.head.hex(),
            "previous_sequence": self.state.sequence,
            "model": self.state.model.hex(),
            "value_range": self.state.value_range,
            "rounds": [asdict(record) for record in self.records],
            "tries": None if self.tries is None else asdict(self.tries),
        }
        aside = path.with_suffix(".tmp")
        with open(aside, "w") as file:
            json.dump(raw, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @classmethod
    def load(cls, path: Path, manifest: bytes) -> Checkpoint | None:
        """The file at ``path``, None when there is none; Misuse when it is of another manifest."""
        if not path.exists():
            return None
        raw = json.loads(path.read_text())
        if raw["manifest"] != manifest.hex():
            raise Misuse("the checkpoint belongs to another manifest of the same job id")
        state = State(
            bytes.fromhex(raw["previous"]),
            raw["previous_sequence"],
            bytes.fromhex(raw["model"]),
            raw["value_range"],
        )
        records = [RoundRecord(**record) for record in raw["rounds"]]
        tries = raw.get("tries")
        known = None if tries is None else Tries(**tries)
        return cls(manifest, state, raw["sequence"], records, known)
