"""When a job is done before its last round, and the reason in words a person understands.

Everything it goes by is public already: scores that were opened, time, and who has left.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedflow.coordinator.records import RoundRecord
from fedflow.learning.metrics import METRICS
from fedflow.learning.plan import Plan

ALL_ROUNDS = "all rounds of the plan are done"


def stop_reason(
    plan: Plan, records: Sequence[RoundRecord], seconds: float, exhausted: int
) -> str | None:
    """Why the job ends now, as ``code: sentence``, or None while it goes on.

    ``seconds`` since its first order; ``exhausted`` sites have left it for lack of budget. Codes:
    ``target-reached``, ``no-improvement``, ``budgets-exhausted``, ``time-over``.
    """
    stopping, metric = plan.stopping, METRICS[plan.evaluation.metric]
    scores = [(r.number, r.score) for r in records if r.score is not None]
    if scores and stopping.target is not None:
        number, score = scores[-1]
        if score == stopping.target or metric.better(score, stopping.target):
            return (
                f"target-reached: {metric.label} {score:.3f} after round {number},"
                f" the target is {stopping.target:g}"
            )
    if scores and stopping.patience is not None:
        at = 0
        for i, (_, score) in enumerate(scores):
            if metric.better(score, scores[at][1]):
                at = i
        if len(scores) - 1 - at >= stopping.patience:
            number, score = scores[at]
            return (
                f"no-improvement: {stopping.patience} evaluations have not been better than"
                f" {metric.label} {score:.3f} after round {number}"
            )
    if stopping.exhausted_sites is not None and exhausted > stopping.exhausted_sites:
        return (
            f"budgets-exhausted: {exhausted} sites have no budget left, the plan goes on with"
            f" up to {stopping.exhausted_sites} of them"
        )
    if stopping.max_seconds is not None and seconds >= stopping.max_seconds:
        return f"time-over: {seconds:.0f} s, the plan allows {stopping.max_seconds:g} s"
    return None
