"""What is told of a round afterwards, and the checkpoint a restarted coordinator goes on from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedflow.coordinator.attempts import Tries
from fedflow.coordinator.job import Job
from fedflow.coordinator.secure_round import RoundResult
from fedflow.errors import Misuse
from fedflow.history import State
from fedflow.learning.metrics import verdict
from fedflow.learning.plan import Plan
from fedflow.learning.scoring import fairness_between, scores_of
from fedflow.secagg.quantise import decode_integers


@dataclass
class RoundRecord:
    """The public facts of one round, as reports and screens show them.

    ``dropped`` sites were lost within the round; ``recovered`` are those of them whose masks had to
    be recovered; ``absent`` sites were not there when it began, and ``resting`` ones not asked, or
    not ready in an asynchronous round. ``rebuilt`` says that the coordinator that ran the round
    died, and the record was made from what it had published: times and bytes are not known.
    ``fairness`` counts sites by their score: ``sites`` in each bin ``between`` two scores, with
    ``stderr``. A record is ``finished`` when the evaluation of the round, if any, came to an
    end.
    """

    number: int
    sites: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    resting: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    training_seconds: float = 0.0
    metric: str = "auc"
    score: float | None = None
    score_stderr: float | None = None
    personalised: float | None = None
    personalised_stderr: float | None = None
    fairness: dict[str, Any] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    attempts: int = 1
    aborted: bool = False
    reason: str = ""
    rebuilt: bool = False
    finished: bool = True

    def fill(self, job: Job, result: RoundResult) -> None:
        """Take in what became of every site of the job."""
        labels, outcome = job.labels, result.outcome
        self.sites = [labels[s] for s in outcome.survivors]
        self.seconds, self.training_seconds = result.seconds, result.training_seconds
        self.bytes = {labels[s]: n for s, n in result.bytes_by_site.items()}
        for site, answer in result.answers.items():
            if answer.outcome == "refused":
                self.refused[labels[site]] = f"{answer.code}: {answer.reason}"
            elif answer.outcome == "resting":
                self.resting.append(labels[site])
            elif site in outcome.survivors:
                continue
            elif answer.code == "absent":
                self.absent.append(labels[site])
            else:
                self.dropped.append(labels[site])
                if site in outcome.delivered:
                    self.recovered.append(labels[site])

    def scored(self, plan: Plan, total: NDArray[np.uint32], sites: int) -> None:
        """Take in the opened sum of the round's evaluation over so many sites."""
        self.metric = plan.evaluation.metric
        found = scores_of(decode_integers(total), plan, sites)
        self.score, self.score_stderr = found.score, found.stderr
        self.personalised = found.personalised
        self.personalised_stderr = found.personalised_stderr
        if found.fairness:
            self.fairness = {
                "between": list(fairness_between(plan)),
                "sites": list(found.fairness),
                "stderr": found.fairness_stderr,
            }

    @property
    def bytes_per_site(self) -> float | None:
        """The mean over the sites that sent something; None where that is not known."""
        sent = [n for n in self.bytes.values() if n]
        return sum(sent) / len(sent) if sent else None

    @property
    def verdict(self) -> str:
        """The score as a person reads it: ``AUC 0.701 ± 0.012``; empty without one."""
        if self.score is None:
            return ""
        own = self.personalised, self.personalised_stderr
        return verdict(self.metric, self.score, self.score_stderr, *own)

    def facts(self) -> dict[str, Any]:
        """As plain values, for the event log and the report."""
        return asdict(self)


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
