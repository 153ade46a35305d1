"""The ledger accounts that pay for a job at a site: opened, matched with the policy, afforded.

An account belongs to a data set's partition, so every job, trial, retry and restart draws on the
same one. Whatever is chosen here follows from the first plan's public numbers and the policy, never
from data.
"""

from __future__ import annotations

from fedflow.errors import Refusal
from fedflow.privacy.accounting import choose_order
from fedflow.privacy.entries import ADAPTIVE, FIXED_PLAN
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.plan_cost import evaluations
from fedflow.site.admission import Admitted
from fedflow.site.policy import Dataset
from fedflow.wire.messages import Kind


def open_accounts(dataset: Dataset, ledger: Ledger, job: Admitted) -> None:
    """Open the job's accounts where they are new, and make sure each can pay for the job.

    An adaptive account must be able to pay for one more release, a fixed-plan account for the whole
    plan. Refusals: ``budget-mismatch`` when ledger and policy disagree, ``budget-exhausted``,
    ``bad-budget``, ``wrong-unit``. Charges nothing.
    """
    for kind in _kinds(job):
        _open(dataset, ledger, job, kind)
        if dataset.accounting == ADAPTIVE:
            ledger.check(job.account(kind), job.event(kind))
        else:
            ledger.check_plan(
                job.account(kind),
                job.event(kind),
                manifest=job.digest,
                planned=_releases(job, kind),
                spare=dataset.spare_rounds,
                delta=job.plan.privacy.delta,
            )


def commit_plans(dataset: Dataset, ledger: Ledger, job: Admitted) -> None:
    """Charge the whole plan to accounts that charge plans; nothing to do for adaptive ones.

    Before this site binds itself to the job. A site that starts again finds the plan paid for.
    """
    if dataset.accounting != FIXED_PLAN:
        return
    for kind in _kinds(job):
        ledger.commit_plan(
            job.account(kind),
            job.event(kind),
            job=job.id,
            manifest=job.digest,
            planned=_releases(job, kind),
            spare=dataset.spare_rounds,
            delta=job.plan.privacy.delta,
        )


def _kinds(job: Admitted) -> list[Kind]:
    """What the plan releases at all: one that only scores needs no account to train from."""
    return [kind for kind in Kind if _releases(job, kind)]


def _releases(job: Admitted, kind: Kind) -> int:
    rounds = job.plan.plan.rounds
    return job.plan.trainings(rounds) if kind is Kind.TRAIN else evaluations(job.plan, rounds)


def _open(dataset: Dataset, ledger: Ledger, job: Admitted, kind: Kind) -> None:
    account, adaptive = job.account(kind), dataset.accounting == ADAPTIVE
    epsilon, delta = dataset.epsilon, dataset.delta
    if account not in ledger.accounts():
        ledger.open_account(
            account,
            epsilon=epsilon,
            delta=delta,
            order=choose_order(job.event(kind), epsilon, delta) if adaptive else 0.0,
            unit=dataset.unit,
            accounting=dataset.accounting,
        )
    status = ledger.account_status(account)
    held = status.epsilon_budget, status.delta, status.accounting
    if held != (epsilon, delta, dataset.accounting):
        raise Refusal(
            "budget-mismatch",
            f"the ledger's budget for {account} is ε {held[0]:g} at δ {held[1]:g} ({held[2]}), the"
            f" policy says ε {epsilon:g} at δ {delta:g} ({dataset.accounting}); a budget is never"
            " rewritten, so the policy must match the ledger",
        )
