"""The plan of a job: one TOML file a person can read, frozen and hashed once it is agreed.

Whatever every party must agree on is here and nowhere else. A site's own limits on what it accepts
are in its policy; the plan never loosens them.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError, model_validator

from fedflow.crypto.suites import SUITES
from fedflow.errors import Refusal, Violation
from fedflow.learning.plan_rules import misfits
from fedflow.learning.plan_sections import (
    CohortSection,
    DeadlinesSection,
    EvaluationSection,
    MethodSection,
    ParticipationSection,
    PlanSection,
    PreprocessingSection,
    PrivacySection,
    Section,
    SecureAggregationSection,
    StoppingSection,
    StrategySection,
    TrainingSection,
)
from fedflow.learning.update_coding import UpdateCoding
from fedflow.secagg.quantise import RING_BITS
from fedflow.settings_file import load_toml
from fedflow.wire.messages import Kind

MAX_PLAN_BYTES = 64 << 10
SUITE_NUMBERS = {suite.name: suite.number for suite in SUITES.values()}
#: Strategies whose every round is one secure sum of something that is no gradient.
METHODS = ("gbdt", "forest", "kmeans", "linear", "prototypes", "histogram", "moments")
#: Of these, those that describe data and predict nothing: there is nothing to score.
DESCRIBING = ("histogram", "moments")
_NEVER_SCORED = EvaluationSection(every=10_000, metric="accuracy", noise_multiplier=1_000_000.0)


class Plan(Section):
    """Everything the parties of one job agree on. Immutable; equal plans have equal digests."""

    plan: PlanSection
    cohort: CohortSection
    participation: ParticipationSection = ParticipationSection()
    strategy: StrategySection
    method: MethodSection = MethodSection()
    preprocessing: PreprocessingSection = PreprocessingSection()
    training: TrainingSection
    privacy: PrivacySection
    evaluation: EvaluationSection = _NEVER_SCORED
    stopping: StoppingSection = StoppingSection()
    secure_aggregation: SecureAggregationSection
    deadlines: DeadlinesSection

    @model_validator(mode="after")
    def _mechanism_fits(self) -> Self:
        problem = next(misfits(self), None)
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _bits_suffice(self) -> Self:
        bits, minimum = self.secure_aggregation.bits, self.cohort.minimum
        if minimum > (1 << (bits - 1)) - 1:
            raise ValueError(
                f"secure_aggregation.bits {bits} cannot sum cohort.minimum {minimum} sites;"
                f" at least {minimum.bit_length() + 1} bits are needed"
            )
        return self

    def canonical(self) -> bytes:
        """The one JSON encoding: sorted keys, no spaces, ASCII. Input of :meth:`digest`."""
        return json.dumps(
            self.model_dump(mode="json"),
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
            ensure_ascii=True,
        ).encode("ascii")

    @classmethod
    def from_canonical(cls, data: bytes) -> Self:
        """The plan a peer sent; Violation for anything but the canonical bytes of a valid plan."""
        if len(data) > MAX_PLAN_BYTES:
            raise Violation("bad-plan", f"a plan of {len(data)} bytes is over the size limit")
        try:
            plan = cls.model_validate_json(data, strict=True)
        except ValidationError as err:
            first = err.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise Violation("bad-plan", f"plan field {field!r}: {first['msg']}") from None
        if plan.canonical() != data:
            raise Violation("bad-plan", "the plan is valid but its bytes are not canonical")
        return plan

    def vector_length(self, kind: Kind, model_dimension: int) -> int:
        """Coordinates in the sum of such a round; the model has ``model_dimension`` parameters.

        A training round has one more than it sends of the model: the last is the site's weight.
        With adaptive clipping the one before it says whether the site's update was within the
        clipping norm. An evaluation has the counts of one model or two, and the sites by score.
        """
        if kind is Kind.EVALUATE:
            models = 1 + self.evaluation.personalised
            return models * self.score_length + (self.evaluation.fairness_bins or 0)
        return self.sent(model_dimension) + 1 + (self.privacy.clipping_quantile is not None)

    def sent(self, model_dimension: int) -> int:
        """How many of the model's coordinates a training round sends."""
        density = self.secure_aggregation.density
        if density == 1.0:
            return model_dimension
        return min(model_dimension, max(1, math.ceil(density * model_dimension - 1e-9)))

    @property
    def cycle(self) -> int:
        """Training rounds that make one step of the model: more than one with groups of sites."""
        return self.participation.groups or 1

    def trainings(self, rounds: int) -> int:
        """How many of the first ``rounds`` training rounds may ask one and the same site."""
        return -(-rounds // self.cycle)

    def smallest_sum(self, sites: int) -> int:
        """How many of ``sites`` the smallest training round asks, if all of them are there."""
        return sites // self.cycle

    @property
    def score_length(self) -> int:
        """Coordinates that one model's score takes in an evaluation's sum."""
        return 2 * (self.evaluation.bins or 1)

    @property
    def local_steps(self) -> int:
        """Gradient steps of one site in one round; an epoch is ``1 / sample_rate`` of them."""
        epochs = self.training.local_epochs
        if epochs is None:
            return int(self.training.local_steps or 1)
        return math.ceil(epochs / self.privacy.sample_rate)

    def last_round(self, kind: Kind) -> int:
        """The number of the last round of a kind. A plan without training scores in round 1."""
        return self.plan.rounds or int(kind is Kind.EVALUATE)

    @property
    def is_method(self) -> bool:
        """Whether rounds sum something else than updates or gradients of a model."""
        return self.strategy.name in METHODS

    def divisor(self, reference_persons: int) -> float:
        """What a site divides its clipped sums by: public, and the same at every site.

        Gradients are in units of one typical batch; what methods sum is in units of people.
        """
        return 1.0 if self.is_method else self.privacy.sample_rate * reference_persons

    @property
    def is_describing(self) -> bool:
        """Whether the job only describes data: there is no model to score."""
        return self.strategy.name in DESCRIBING

    @property
    def is_prepared(self) -> bool:
        """Whether ``[preprocessing]`` is there."""
        return bool(self.preprocessing.columns)

    @property
    def is_scored(self) -> bool:
        """Whether ``[evaluation]`` is there."""
        return self.evaluation != _NEVER_SCORED

    @property
    def is_asynchronous(self) -> bool:
        """Whether training rounds close at ``strategy.buffer`` sites, and sites train ahead."""
        return self.strategy.name == "fedbuff"

    @property
    def weighting(self) -> Literal["uniform", "declared"]:
        """Whether all weights in a sum are 1, or whatever each site says (under the masks)."""
        return "declared" if self.is_asynchronous else self.strategy.weighting

    @property
    def keeps_at_sites(self) -> bool:
        """Whether sites keep something from round to round (:mod:`fedflow.learning.site_state`)."""
        own = bool(self.training.local_layers) or self.evaluation.personalised
        return own or self.strategy.name == "scaffold"

    def is_evaluated(self, number: int) -> bool:
        """Whether the model is scored after round ``number`` (1 is the first); the last always."""
        if self.is_describing:
            return False
        return number % self.evaluation.every == 0 or number == max(self.plan.rounds, 1)

    def bits(self, kind: Kind) -> int:
        """Bits per coordinate of such a round: statistics are exact integers of 32 bits."""
        return self.secure_aggregation.bits if kind is Kind.TRAIN else RING_BITS

    def coding(self, sites: int, value_range: float) -> UpdateCoding:
        """How updates within ``±value_range`` become words when at most ``sites`` are added.

        ``value_range`` is that of the round. Refusal ``too-few-bits`` when the plan's bits cannot
        hold a sum of so many sites.
        """
        bits = self.secure_aggregation.bits
        if sites > (1 << (bits - 1)) - 1:
            raise Refusal(
                "too-few-bits",
                f"secure_aggregation.bits is {bits}, too few to sum {sites} sites; at least"
                f" {sites.bit_length() + 1} are needed",
            )
        return UpdateCoding(sites, bits, value_range)

    @property
    def suite(self) -> int:
        """The number of the cipher suite, as messages carry it."""
        return SUITE_NUMBERS[self.secure_aggregation.suite]

    @property
    def order_seconds(self) -> float:
        """How long one order may stay open: training and the five legs after it."""
        return self.deadlines.round_seconds + 5 * self.deadlines.leg_seconds

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the canonical plan under its own label."""
        return hashlib.sha256(b"fedflow/1 plan\0" + self.canonical()).digest()


def load_plan(path: str | Path) -> Plan:
    """The plan in a TOML file; InputError with file, line, field and what is allowed."""
    return load_toml(path, Plan)
