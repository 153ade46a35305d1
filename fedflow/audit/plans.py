"""Plans that were charged whole: for what the job's plan says, and at a price a second accountant
confirms.

That no plan released more than was paid for, and that nothing was given back, are rules of the
ledger itself (:mod:`fedflow.privacy.chain`).
"""

from __future__ import annotations

from fedflow.audit.evidence import JobEvidence
from fedflow.audit.exports import SiteLedger
from fedflow.audit.findings import Recorder
from fedflow.learning.plan import Plan
from fedflow.privacy.accounting import epsilon_rdp
from fedflow.privacy.accounts import FixedPlanAccount, plan_epsilon
from fedflow.privacy.entries import Committed
from fedflow.privacy.plan_cost import evaluation_event, evaluations, training_event

#: How far two accountants may differ for one plan: the width of a loss grid.
PLAN_SLACK = 0.01


def check_plan_charges(job: JobEvidence, ledger: SiteLedger, recorder: Recorder) -> None:
    """Every whole charge for ``job`` is for its plan's mechanism, rounds and delta."""
    for entry in _plans(ledger):
        if entry.manifest != job.digest:
            continue
        recorder.count("release")
        stated = (entry.job, entry.event, entry.planned, entry.delta)
        if stated not in _expected(job.id, job.plan):
            sentence = (
                f"{ledger.label} charged a whole plan for this job ({entry.planned} releases at δ "
                f"{entry.delta:g}) that is not the plan everybody signed."
            )
            where = f"{ledger.where}, entry {entry.seq}"
            recorder.error("release", "wrong-plan-charge", sentence, where)


def check_plan_prices(ledgers: dict[int, SiteLedger], recorder: Recorder) -> None:
    """Every whole charge recomputed with both accountants; neither may contradict it."""
    for ledger in ledgers.values():
        for entry in _plans(ledger):
            where = f"{ledger.where}, entry {entry.seq}"
            with recorder.examining("epsilon", where):
                event, releases, delta = entry.release_event, entry.releases, entry.delta
                low = plan_epsilon(event, releases, delta)
                high = epsilon_rdp([event.repeated(releases)], delta)
                if not low - PLAN_SLACK <= entry.epsilon <= high + PLAN_SLACK:  # so NaN fails
                    sentence = (
                        f"{ledger.label} charged ε = {entry.epsilon:.3f} for one {event.unit} and "
                        f"a whole plan; two accountants find {low:.3f} and {high:.3f}."
                    )
                    recorder.error("epsilon", "accountants-disagree", sentence, where)


def _plans(ledger: SiteLedger) -> list[Committed]:
    accounts = ledger.chain.accounts.values()
    return [
        plan
        for account in accounts
        if isinstance(account, FixedPlanAccount)
        for plan in account.plans.values()
    ]


def _expected(job: str, plan: Plan) -> set[tuple[str, str, int, float]]:
    """What a charge for training, and one for evaluation, says."""
    rounds, delta = plan.plan.rounds, plan.privacy.delta
    return {
        (job, training_event(plan).canonical(), plan.trainings(rounds), delta),
        (job, evaluation_event(plan).canonical(), evaluations(plan, rounds), delta),
    }
