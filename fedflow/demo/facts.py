"""Collects what the demo shows: rounds from the job, budgets from the ledgers, baselines computed.

Only a demo can do this: it holds all six sites' rows, so it may compute exact scores and baselines.
In a federation nobody can, and the model is scored by noised secure sums alone.
"""

from __future__ import annotations

import os
import platform
from typing import Any

from fedflow.coordinator.runner import JobRunner
from fedflow.crypto.csprng import Csprng
from fedflow.demo.world import DATASET, World
from fedflow.errors import Misuse
from fedflow.exchange import layout
from fedflow.learning import baselines
from fedflow.learning.evaluation import exact_score_of_sites
from fedflow.learning.first_model import decode_state
from fedflow.learning.model_file import Arrays
from fedflow.learning.plan import Plan
from fedflow.learning.site_state import personal_model, read_kept, site_model
from fedflow.learning.workload import PersonData, Workload, find_workload
from fedflow.privacy.accounting import FixedOrderFilter
from fedflow.privacy.entries import Opened
from fedflow.privacy.ledger import Ledger
from fedflow.site.kept import kept_bytes
from fedflow.wire.messages import Kind


def collect_facts(world: World, plan: Plan) -> dict[str, Any]:
    """The facts of a finished job, in the shape of :mod:`fedflow.report.facts`."""
    runner = JobRunner(world.coordinator, world.job.id)
    workload = find_workload(plan.plan.workload)
    data = {label: workload.load(world.data(label)) for label in world.labels}
    facts: dict[str, Any] = {
        "job": world.job.id,
        "plan": plan.model_dump(mode="json"),
        "sites": [
            {"index": i, "label": label, "fingerprint": world.job.roster[i].fingerprint()}
            for i, label in world.job.labels.items()
        ],
        "rounds": [record.facts() | {"auc": record.score} for record in runner.records],
        "folder": str(world.folder),
        "machine": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
        },
    }
    if not plan.is_describing:
        facts |= _scores(world, runner, workload, plan, data)
    return facts | _budgets(world, plan, facts["rounds"])


def _scores(
    world: World,
    runner: JobRunner,
    workload: Workload,
    plan: Plan,
    data: dict[str, PersonData],
) -> dict[str, Any]:
    """Exact AUC of the global model, of the sites' own and of the baselines, on all held-out."""
    model = world.coordinator.exchange.get(layout.blob(world.job.id, runner.model_digest))
    if model is None:
        raise Misuse("the final model is not in the exchange")
    state = decode_state(model, workload, plan)
    (world.folder / "model.safetensors").write_bytes(model)
    reference = baselines.compute(workload, data, plan, Csprng.from_os())
    held_out = {label: data[label].holdout for label in world.labels}
    files = {label: kept_bytes(world.site(label), world.job.id) for label in world.labels}
    kept = {label: read_kept(file, workload, plan) for label, file in files.items()}
    judged = {label: site_model(workload, state, kept[label], plan) for label in world.labels}
    own = {label: personal_model(judged[label], kept[label], plan) for label in world.labels}

    def score(models: dict[str, Arrays]) -> float:
        parts = [(held_out[label], models[label]) for label in world.labels]
        return exact_score_of_sites(workload, parts, plan)

    return {
        "auc_global": score(judged),
        "auc_personalised": score(own) if plan.evaluation.personalised else None,
        "auc_alone": reference.alone,
        "auc_alone_mean": reference.alone_mean,
        "auc_pooled": reference.pooled,
        "auc_federated_no_privacy": reference.federated,
    }


def _budgets(world: World, plan: Plan, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """ε per site from its own ledger: training partition, total and after every round.

    A person is either a training or a held-out person, so no person pays for both; the larger of
    the two accounts is what is reported as spent.
    """
    spent, left, by_pld = {}, {}, {}
    budget = delta = 0.0
    for label in world.labels:
        key = world.job.roster[world.job.index(label)]
        ledger = Ledger.open(world.site(label) / "ledger.sqlite", key)
        accounts = [ledger.account_status(name) for name in ledger.accounts()]
        account = f"{DATASET}/{Kind.TRAIN.word}"
        opened = next(e for e in ledger.entries() if isinstance(e, Opened) and e.account == account)
        charges = ledger.charges(account)
        ledger.close()
        worst = max(accounts, key=lambda a: a.epsilon_spent)
        spent[label], left[label] = worst.epsilon_spent, worst.epsilon_left
        by_pld[label] = max(a.epsilon_pld for a in accounts)
        budget, delta = worst.epsilon_budget, worst.delta
        price = FixedOrderFilter(opened.epsilon, opened.delta, opened.order)
        for facts in rounds:
            paid = sum(c.rho for c in charges if c.reserved.round <= facts["number"])
            facts.setdefault("epsilon", {})[label] = price.epsilon(paid)
    return {
        "epsilon_spent": spent,
        "epsilon_left": left,
        "epsilon_pld": by_pld,
        "epsilon_budget": budget,
        "delta": delta,
    }
