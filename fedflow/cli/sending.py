"""How many bytes a plan has each site send, for ``fedflow plan check``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from fedflow.learning.first_model import plan_spec
from fedflow.learning.plan import Plan
from fedflow.learning.workload import Workload
from fedflow.privacy.plan_cost import evaluations
from fedflow.report import words
from fedflow.secagg.vectors import packed_size
from fedflow.wire.messages import Kind


@dataclass(frozen=True, slots=True)
class Sending:
    """Masked vectors of one site: what grows with the model. Keys and shares come on top.

    ``dimension`` coordinates are in the model, ``sent`` of them in a training round, which takes
    ``update_bytes``; ``job_bytes`` are all of a job's rounds and evaluations.
    """

    dimension: int
    sent: int
    bits: int
    update_bytes: int
    job_bytes: int

    @classmethod
    def of(cls, plan: Plan, workload: Workload) -> Self:
        """Of a site that is in every sum that asks it."""
        dimension, rounds = plan_spec(workload, plan).dimension, plan.plan.rounds
        update = packed_size(plan.vector_length(Kind.TRAIN, dimension), plan.bits(Kind.TRAIN))
        score = packed_size(plan.vector_length(Kind.EVALUATE, dimension), plan.bits(Kind.EVALUATE))
        return cls(
            dimension=dimension,
            sent=plan.sent(dimension),
            bits=plan.bits(Kind.TRAIN),
            update_bytes=update,
            job_bytes=update * plan.trainings(rounds) + score * evaluations(plan, rounds),
        )

    def facts(self) -> dict[str, object]:
        """For machines: all fields."""
        return asdict(self)

    def sentence(self) -> str:
        """For people."""
        part = "all" if self.sent == self.dimension else f"{self.sent} of"
        return (
            f"a masked update is {words.size(self.update_bytes)}: {part} {self.dimension}"
            f" coordinates at {self.bits} bits; {words.size(self.job_bytes)} per site in the whole"
            " job, besides keys, shares and signatures"
        )
