"""The statistics of a finished describing job, read from what its coordinator signed."""

from __future__ import annotations

from dataclasses import dataclass

from fedflow.coordinator.job import load_job
from fedflow.crypto.identity import PublicKey
from fedflow.errors import Refusal
from fedflow.exchange import Exchange
from fedflow.federation.scoring import final_model
from fedflow.learning.first_model import decode_state
from fedflow.learning.plan import Plan
from fedflow.learning.statistics import ColumnStatistics, section_of, section_toml, statistics_of
from fedflow.learning.workload import find_workload


@dataclass(frozen=True)
class Described:
    """What a job found out: noised, paid for, public."""

    job: str
    plan: Plan
    columns: tuple[ColumnStatistics, ...]

    def toml(self) -> str:
        """The ``[preprocessing]`` that follows, as a plan has it."""
        rounds, name = self.plan.plan.rounds, self.plan.plan.workload
        how = f"# From the noised sums of job {self.job}: {rounds} of workload {name}.\n"
        return how + section_toml(section_of(self.columns))


def described(exchange: Exchange, job: str, authority: PublicKey) -> Described:
    """What ``job`` found out. Refusals ``not-describing``, ``not-finished``, ``unknown-workload``.

    InputError when there is no such job; OSError while the exchange is away.
    """
    loaded = load_job(exchange, job, authority)
    plan = loaded.plan
    if plan.strategy.name != "moments":
        raise Refusal(
            "not-describing",
            f"the plan of {job} has strategy.name {plan.strategy.name!r}; what to write into"
            ' [preprocessing] comes from a job with "moments"',
        )
    workload = find_workload(plan.plan.workload)
    file = final_model(exchange, job, authority)
    state = decode_state(file, workload, plan)
    return Described(job, plan, statistics_of(workload, state, plan, sites=len(loaded.roster)))
