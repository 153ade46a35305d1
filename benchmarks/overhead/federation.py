"""A federation on disk whose training is trivial: keys, sites with made-up rows, one signed job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedflow.coordinator.job import create_job
from fedflow.coordinator.settings import CoordinatorFolder, init_coordinator, open_coordinator
from fedflow.crypto.identity import Identity
from fedflow.learning.first_model import first_model
from fedflow.learning.plan import Plan, load_plan
from fedflow.learning.trivial import DATA_FILE, workload, write_site
from fedflow.site.config import init_site
from fedflow.site.policy import template

PLAN = Path(__file__).parents[2] / "flows/plans/trivial.toml"
JOB = "overhead"


def plan_of(rounds: int) -> Plan:
    """``flows/plans/trivial.toml`` for so many rounds, with a score after none but the last."""
    plan = load_plan(PLAN)
    changes = {
        "plan": plan.plan.model_copy(update={"rounds": rounds}),
        "evaluation": plan.evaluation.model_copy(update={"every": rounds}),
    }
    return plan.model_copy(update=changes)


@dataclass(frozen=True)
class Federation:
    """Where everything is."""

    folder: Path
    coordinator: CoordinatorFolder
    plan: Plan
    labels: tuple[str, ...]

    def site(self, label: str) -> Path:
        """A site's folder."""
        return self.folder / label

    def socket(self, label: str) -> Path:
        """A site agent's socket."""
        return self.site(label) / "agent.sock"


def build(folder: Path, sites: int, rounds: int) -> Federation:
    """Make it in ``folder``: a folder as the exchange, a budget that no round exhausts."""
    plan, exchange = plan_of(rounds), str(folder / "exchange")
    authority = Identity.generate()
    key = init_coordinator(folder / "coordinator", exchange=exchange, authority=authority.public)
    keys = {}
    for number in range(sites):
        label = f"site-{number:03d}"
        policy = template(
            authority=authority.public.hex(),
            coordinators=[key.public.hex()],
            workload=workload.name,
            dataset="rows",
            path=DATA_FILE,
            epsilon=50.0,
            plan=plan,
        )
        identity = init_site(folder / label, label=label, exchange=exchange, policy=policy)
        write_site(folder / label / DATA_FILE, label)
        keys[label] = identity.public
    coordinator = open_coordinator(folder / "coordinator")
    first = first_model(plan)
    create_job(
        coordinator.exchange,
        job=JOB,
        plan=plan,
        sites=keys,
        coordinator=key.public,
        authority=authority,
        initial_model=first.file,
        spec=first.spec,
        reference_persons=first.reference_persons,
    )
    return Federation(folder, coordinator, plan, tuple(sorted(keys)))
