"""The facts a report is made of, and the few numbers derived from them.

Everything here is already public to the coordinator: names of sites, sums, budgets, sizes, times.
A value that was not measured is ``None`` or absent, and is shown as such, never as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from fedflow.learning.metrics import METRICS, Metric
from fedflow.learning.plan import DESCRIBING


class SiteFacts(TypedDict, total=False):
    """One site of the roster: its index, human label and key fingerprint."""

    index: int
    label: str
    fingerprint: str


class RoundFacts(TypedDict, total=False):
    """One round. ``seconds`` is wall time, ``bytes`` what each site sent; a score if any."""

    number: int
    sites: list[str]
    dropped: list[str]
    recovered: list[str]
    absent: list[str]
    resting: list[str]
    refused: dict[str, str]
    seconds: float
    training_seconds: float
    metric: str
    score: float | None
    score_stderr: float | None
    personalised: float | None
    personalised_stderr: float | None
    fairness: dict[str, Any]
    epsilon: dict[str, float]
    bytes: dict[str, int]
    aborted: bool
    reason: str


class ReportFacts(TypedDict, total=False):
    """Everything ``fedflow demo --json`` prints. All keys may be absent except ``job``.

    Keys that start with "auc" hold scores of whatever metric the plan has (:func:`metric`).
    """

    job: str
    plan: dict[str, Any]
    sites: list[SiteFacts]
    auc_global: float | None
    auc_personalised: float | None
    auc_alone_mean: float | None
    auc_alone: dict[str, float]
    auc_pooled: float | None
    auc_federated_no_privacy: float | None
    epsilon_spent: dict[str, float]
    epsilon_pld: dict[str, float]
    epsilon_left: dict[str, float]
    epsilon_budget: float | None
    delta: float | None
    rounds: list[RoundFacts]
    audit_ok: bool | None
    audit: dict[str, Any]
    report: str
    folder: str
    prefect_url: str
    machine: dict[str, Any]
    seconds_total: float | None
    stopped_early: str | None


@dataclass(frozen=True)
class Summary:
    """Headline numbers derived from the facts. ``None`` means it was not measured.

    ``gain`` is positive where the global model is better, also by a metric that is lower then.
    """

    gain: float | None
    worst_epsilon: float | None
    completed: int
    aborted: int
    planned: int | None
    attendances: int
    absences: int
    mean_round_seconds: float | None
    mean_training_seconds: float | None
    mean_bytes: float | None
    unit: str


def summarise(facts: Mapping[str, Any]) -> Summary:
    """Derive the headline numbers; never invents a value for one that is missing."""
    rounds = list(facts.get("rounds") or ())
    done = [r for r in rounds if not r.get("aborted")]
    score, alone = facts.get("auc_global"), facts.get("auc_alone_mean")
    spent = [float(v) for v in (facts.get("epsilon_spent") or {}).values()]
    sent = [float(n) for r in rounds for n in (r.get("bytes") or {}).values() if n]
    return Summary(
        gain=None if score is None or alone is None else better_by(facts, score, alone),
        worst_epsilon=max(spent) if spent else None,
        completed=len(done),
        aborted=len(rounds) - len(done),
        planned=section(facts, "plan").get("rounds"),
        attendances=sum(len(r.get("sites") or ()) for r in done),
        absences=sum(len(r.get("dropped") or ()) + len(r.get("refused") or {}) for r in rounds),
        mean_round_seconds=_mean([r["seconds"] for r in done if r.get("seconds") is not None]),
        mean_training_seconds=_mean(
            [r["training_seconds"] for r in done if r.get("training_seconds") is not None]
        ),
        mean_bytes=_mean(sent),
        unit=str(section(facts, "privacy").get("unit", "person")),
    )


def section(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One section of the plan, empty when the plan or the section is absent."""
    value = (facts.get("plan") or {}).get(name)
    return value if isinstance(value, Mapping) else {}


def metric(facts: Mapping[str, Any]) -> Metric:
    """What the plan's scores are."""
    return METRICS[section(facts, "evaluation").get("metric", "auc")]


def describes(facts: Mapping[str, Any]) -> bool:
    """Whether the plan only describes data: there is no model to score."""
    return section(facts, "strategy").get("name") in DESCRIBING


def better_by(facts: Mapping[str, Any], score: float, other: float) -> float:
    """How much better ``score`` is than ``other``: their difference, or minus that of errors."""
    difference = float(score) - float(other)
    return difference if metric(facts).higher_is_better else -difference


def sent_per_site(r: Mapping[str, Any]) -> float | None:
    """Bytes of a round, the mean over the sites that sent something; None where not known."""
    sent = [int(n) for n in (r.get("bytes") or {}).values() if n]
    return sum(sent) / len(sent) if sent else None


def is_personalised(facts: Mapping[str, Any]) -> bool:
    """Whether rounds have a score of the sites' own models too."""
    return any(r.get("personalised") is not None for r in facts.get("rounds") or ())


def labels(facts: Mapping[str, Any]) -> list[str]:
    """The sites' labels in roster order, completed by any label that only the rounds mention."""
    seen = [str(s["label"]) for s in facts.get("sites") or () if "label" in s]
    for r in facts.get("rounds") or ():
        names = [*(r.get("sites") or ()), *(r.get("dropped") or ()), *(r.get("refused") or {})]
        seen += [n for n in names if n not in seen]
    return seen


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
