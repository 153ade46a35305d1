"""A federation on disk whose training is trivial: keys, sites with made-up rows, one signed job."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from fedflow.coordinator.job import create_job
from fedflow.coordinator.settings import CoordinatorFolder, init_coordinator, open_coordinator
from fedflow.crypto.identity import Identity, PublicKey
from fedflow.exchange import open_exchange
from fedflow.learning.first_model import first_model
from fedflow.learning.plan import Plan, load_plan
from fedflow.learning.trivial import DATA_FILE, write_site
from fedflow.site.config import init_site
from fedflow.site.policy import template
from fedflow.wire.membership import FederationRoster, Member, Role
from fedflow.wire.sealed import seal

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
    """Where everything is, and whose keys it has."""

    folder: Path
    url: str
    plan: Plan
    authority: Identity
    keys: dict[str, PublicKey]

    @property
    def labels(self) -> tuple[str, ...]:
        """All sites."""
        return tuple(sorted(self.keys))

    @property
    def coordinator(self) -> CoordinatorFolder:
        """The coordinator's folder, opened."""
        return open_coordinator(self.folder / "coordinator")

    def site(self, label: str) -> Path:
        """A site's folder."""
        return self.folder / label

    def socket(self, label: str) -> Path:
        """A site agent's socket."""
        return self.site(label) / "agent.sock"

    @property
    def roster(self) -> Path:
        """The members of the federation, signed: what a relay starts with."""
        return self.folder / "roster"

    def publish(self) -> None:
        """Sign the job and put it into the exchange."""
        first = first_model(self.plan)
        create_job(
            open_exchange(self.url, self.authority),
            job=JOB,
            plan=self.plan,
            sites=self.keys,
            coordinator=self.coordinator.identity.public,
            authority=self.authority,
            initial_model=first.file,
            spec=first.spec,
            reference_persons=first.reference_persons,
        )


def build(folder: Path, sites: int, plan: Plan, relay: str = "") -> Federation:
    """Make it in ``folder``, with a folder or the ``relay`` at that URL as the exchange.

    Sites have the rows of ``trivial``. No round of a plan like its own exhausts a budget.
    """
    exchange = relay or str(folder / "exchange")
    authority = Identity.generate()
    key = init_coordinator(folder / "coordinator", exchange=exchange, authority=authority.public)
    keys = {}
    for number in range(sites):
        label = f"site-{number:03d}"
        policy = template(
            authority=authority.public.hex(),
            coordinators=[key.public.hex()],
            workload=plan.plan.workload,
            dataset="rows",
            path=DATA_FILE,
            epsilon=50.0,
            plan=plan,
        )
        identity = init_site(folder / label, label=label, exchange=exchange, policy=policy)
        write_site(folder / label / DATA_FILE, label)
        keys[label] = identity.public
    federation = Federation(folder, exchange, plan, authority, keys)
    now = int(time.time())
    period = {"not_before": now - 60, "not_after": now + 864_000, "revoked": 0}
    members = [Member(Role.SITE, label, public.raw, **period) for label, public in keys.items()]
    members.append(Member(Role.COORDINATOR, "coordinator", key.public.raw, **period))
    roster = FederationRoster("overhead", 1, now, tuple(members))
    federation.roster.write_bytes(seal(authority, roster))
    return federation
