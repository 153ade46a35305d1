"""The plan of a job: one TOML file a person can read, frozen and hashed once it is agreed.

Whatever every party must agree on is here and nowhere else. A site's own limits on what it accepts
are in its policy; the plan never loosens them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from fedflow.crypto.suites import SUITES
from fedflow.errors import Refusal, Violation
from fedflow.learning.metrics import MetricName
from fedflow.learning.update_coding import UpdateCoding
from fedflow.secagg.quantise import RING_BITS
from fedflow.settings_file import load_toml
from fedflow.wire.messages import MAX_SITES, Kind

MAX_PLAN_BYTES = 64 << 10
_WIDEST = 1_000_000.0
_MOST_STEPS = 10_000
_RANGE = (
    '"auto" or a number over 0 and at most 1e+06; coordinates are clamped to plus or minus this'
)
_SUITES = {suite.name: suite.number for suite in SUITES.values()}
_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PlanSection(_Section):
    """``[plan]``: what is trained and for how long."""

    name: str = Field(pattern=_NAME, description="lower-case letters, digits and dashes")
    workload: str = Field(pattern=_NAME, description="the name of an installed workload")
    rounds: int = Field(
        ge=0, le=10_000, description="training rounds; 0 scores the first model and trains nothing"
    )


class CohortSection(_Section):
    """``[cohort]``: who must take part before a sum is opened."""

    minimum: int = Field(ge=2, le=MAX_SITES, description="fewest sites whose sum may be opened")
    colluders: int = Field(
        ge=0,
        le=MAX_SITES - 2,
        description="sites assumed to work with the server, fewer than minimum",
    )

    @model_validator(mode="after")
    def _honest_remain(self) -> Self:
        if self.minimum - self.colluders < 2:
            raise ValueError(
                f"minimum {self.minimum} with {self.colluders} colluders leaves fewer than two"
                " honest sites in a sum, which would show a single site's update; raise minimum"
            )
        return self


class ParticipationSection(_Section):
    """``[participation]``: which of the sites that are there a training round asks.

    No privacy guarantee counts on it: see :mod:`fedflow.coordinator.selection`.
    """

    fraction: float = Field(
        default=1.0, gt=0, le=1, description="of the roster, asked in each round; C in the papers"
    )
    selection: Literal["random", "availability", "budget"] = Field(
        default="random",
        description="all alike, the most reliable first, or those that paid for the fewest sums",
    )
    spare: int = Field(
        default=0, ge=0, le=MAX_SITES, description="asked beyond cohort.minimum, in case some drop"
    )
    strata: tuple[Annotated[str, Field(pattern=r"^[a-z0-9*?-]{1,63}$")], ...] = Field(
        default=(),
        max_length=64,
        description="patterns of site labels; each has a part of the places in proportion",
    )


class StrategySection(_Section):
    """``[strategy]``: how the sum of what sites send changes the global model."""

    name: Literal["fedavg", "fedsgd", "scaffold", "fedbuff"] = Field(
        description="the mean of updates, one step along the mean gradient, the mean of updates"
        " corrected by control variates, or of the first that are ready, however old"
    )
    buffer: int | None = Field(
        default=None, ge=2, le=MAX_SITES, description="of fedbuff: updates in a sum"
    )
    max_staleness: int = Field(
        default=20, ge=0, le=1_000, description="of fedbuff: rounds after which a site starts anew"
    )
    server_learning_rate: float = Field(
        gt=0, le=1_000, description="factor on the mean; 1 is plain averaging of updates"
    )
    weighting: Literal["uniform", "declared"] = Field(
        default="uniform",
        description="all sites weigh 1, or each the public weight its operator declares",
    )
    server_optimizer: Literal["sgd", "adam", "yogi", "adagrad"] = Field(
        default="sgd", description="what steps along the mean"
    )
    server_adaptivity: float = Field(
        default=1e-3,
        gt=0,
        le=1,
        description="of adam, yogi and adagrad: added to the root of the second moment;"
        " the smaller, the more alike are the steps of all coordinates",
    )
    server_momentum: float = Field(
        default=0.0, ge=0, lt=1, description="of server_optimizer sgd; 0 switches it off"
    )


class TrainingSection(_Section):
    """``[training]``: what a site does with its own data in one round."""

    local_steps: int | None = Field(
        default=None, ge=1, le=10_000, description="gradient steps per round"
    )
    local_epochs: int | None = Field(
        default=None, ge=1, le=1_000, description="expected passes over the data, for local_steps"
    )
    learning_rate: float = Field(
        default=1.0, gt=0, le=1_000, description="step size at the site; unused by fedsgd"
    )
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="the site's optimiser")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd; 0 switches it off")
    proximal: float = Field(
        default=0.0, ge=0, le=1_000, description="FedProx: pull towards the global model, its mu"
    )
    max_physical_batch: int = Field(
        default=512, ge=1, le=65_536, description="units worked on at once; memory, not privacy"
    )


class PrivacySection(_Section):
    """``[privacy]``: what is protected, how, and how much noise it takes.

    ``mechanism`` "local": every gradient step is noised at the site (Abadi et al. 2016). "summed":
    one clipped gradient sum per round, of which each site's noise is a share. "site": the whole
    clipped update of a site, with shares of noise; for cohorts of hundreds.
    """

    mechanism: Literal["local", "summed", "site"] = Field(
        default="local", description="who adds the noise, and to what"
    )
    unit: Literal["record", "person", "site"] = Field(
        description="what is protected as a whole: a row, all rows of a person, or a site"
    )
    clipping_norm: float = Field(
        gt=0, le=1_000_000, description="largest L2 norm of what one unit contributes"
    )
    noise_multiplier: float = Field(
        gt=0, le=1_000_000, description="noise standard deviation divided by clipping_norm"
    )
    sample_rate: float = Field(
        gt=0, le=1, description="probability per step that a unit is in the batch"
    )
    delta: float = Field(
        gt=0, le=1e-3, description="probability bound of the guarantee, below 1/units"
    )
    clipping_quantile: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description='with mechanism "site": clipping_norm then follows this quantile of the norms',
    )


class EvaluationSection(_Section):
    """``[evaluation]``: how often, by what and how precisely the model is scored on held-out units.

    :mod:`fedflow.learning.metrics` has the metrics.
    """

    every: int = Field(ge=1, le=10_000, description="rounds between evaluations")
    metric: MetricName = Field(default="auc", description="what the score is")
    bins: int | None = Field(
        default=None, ge=2, le=1_000, description='score bins per class; only metric "auc" has them'
    )
    error_bound: float | None = Field(
        default=None,
        gt=0,
        le=1e12,
        description='largest squared error that is told apart; only metric "mse" has it',
    )
    noise_multiplier: float = Field(
        gt=0, le=1_000_000, description="noise of the opened sum divided by one person's weight"
    )


class StoppingSection(_Section):
    """``[stopping]``: what ends a job before its last round; see `fedflow.coordinator.stopping`."""

    max_seconds: float | None = Field(
        default=None, gt=0, le=31_536_000, description="of the whole job, from its first order"
    )
    target: float | None = Field(
        default=None, description="a score that is good enough, in the metric's own unit"
    )
    patience: int | None = Field(
        default=None, ge=1, le=10_000, description="evaluations without a better score"
    )
    exhausted_sites: int | None = Field(
        default=None, ge=0, le=MAX_SITES, description="most sites that may be without budget"
    )


class SecureAggregationSection(_Section):
    """``[secure_aggregation]``: how an update becomes integers, and how masks are agreed on."""

    bits: int = Field(ge=8, le=32, description="bits per coordinate of a training round")
    value_range: Literal["auto"] | float = Field(description=_RANGE)
    suite: Literal["x25519", "x25519-mlkem768"] = Field(
        default="x25519", description="key agreement; the second also withstands quantum computers"
    )

    @field_validator("value_range", mode="wrap")
    @classmethod
    def _auto_or_number(cls, value: object, inner: ValidatorFunctionWrapHandler) -> object:
        try:
            checked = inner(value)
        except ValidationError:
            checked = None
        if checked == "auto" or (isinstance(checked, float) and 0 < checked <= _WIDEST):
            return checked
        # one problem with one sentence, where a union would report one for each of its members
        raise ValueError(f"this is not allowed here (allowed: {_RANGE})")


class DeadlinesSection(_Section):
    """``[deadlines]``: how long the coordinator waits."""

    round_seconds: float = Field(gt=0, le=604_800, description="seconds for local training")
    leg_seconds: float = Field(
        gt=0, le=604_800, description="seconds for one leg of secure aggregation"
    )


class Plan(_Section):
    """Everything the parties of one job agree on. Immutable; equal plans have equal digests."""

    plan: PlanSection
    cohort: CohortSection
    participation: ParticipationSection = ParticipationSection()
    strategy: StrategySection
    training: TrainingSection
    privacy: PrivacySection
    evaluation: EvaluationSection
    stopping: StoppingSection = StoppingSection()
    secure_aggregation: SecureAggregationSection
    deadlines: DeadlinesSection

    @model_validator(mode="after")
    def _mechanism_fits(self) -> Self:
        problem = next(_misfits(self), None)
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

        A training round has one more than the model: the last is the site's weight. With adaptive
        clipping the one before it says whether the site's update was within the clipping norm.
        """
        if kind is Kind.EVALUATE:
            return 2 * (self.evaluation.bins or 1)
        return model_dimension + 1 + (self.privacy.clipping_quantile is not None)

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
        return self.strategy.name == "scaffold"

    def is_evaluated(self, number: int) -> bool:
        """Whether the model is scored after round ``number`` (1 is the first); the last always."""
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
        return _SUITES[self.secure_aggregation.suite]

    @property
    def order_seconds(self) -> float:
        """How long one order may stay open: training and the five legs after it."""
        return self.deadlines.round_seconds + 5 * self.deadlines.leg_seconds

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the canonical plan under its own label."""
        return hashlib.sha256(b"fedflow/1 plan\0" + self.canonical()).digest()


def _misfits(plan: Plan) -> Iterator[str]:
    """Settings that make no sense together, each as a sentence."""
    privacy, training, strategy = plan.privacy, plan.training, plan.strategy
    for name, metric in (("bins", "auc"), ("error_bound", "mse")):
        wanted = plan.evaluation.metric == metric
        if wanted != (getattr(plan.evaluation, name) is not None):
            problem = "is missing for" if wanted else "is only for"
            yield f'evaluation.{name} {problem} metric "{metric}"'
    mechanism = privacy.mechanism
    if (training.local_steps is None) == (training.local_epochs is None):
        yield "training needs either local_steps or local_epochs"
    if plan.local_steps > _MOST_STEPS:
        yield f"training.local_epochs makes {plan.local_steps} steps a round, over {_MOST_STEPS}"
    if (privacy.unit == "site") != (mechanism == "site"):
        yield f'privacy.mechanism "{mechanism}" cannot protect unit "{privacy.unit}"'
    if (strategy.name == "fedsgd") != (mechanism == "summed"):
        yield f'strategy.name "{strategy.name}" does not go with privacy.mechanism "{mechanism}"'
    if mechanism == "summed":
        if plan.local_steps != 1:
            yield 'with privacy.mechanism "summed" a round is one step: training.local_steps is 1'
        own = (training.optimizer, training.momentum, training.learning_rate)
        if own != ("sgd", 0.0, 1.0):
            yield (
                'with privacy.mechanism "summed" only the server steps: leave out'
                " training.optimizer, momentum and learning_rate, set them under [strategy]"
            )
    if mechanism != "local" and strategy.weighting != "uniform":
        yield f'with privacy.mechanism "{mechanism}" strategy.weighting is "uniform"'
    if privacy.clipping_quantile is not None and mechanism != "site":
        yield 'privacy.clipping_quantile is for privacy.mechanism "site"'
    for name, optimizer, momentum in (
        ("training.momentum", training.optimizer, training.momentum),
        ("strategy.server_momentum", strategy.server_optimizer, strategy.server_momentum),
    ):
        if optimizer != "sgd" and momentum:
            yield f"{name} belongs to sgd; {optimizer} has its own"
    if training.proximal and plan.local_steps == 1:
        yield (
            "training.proximal does nothing in a round of one step, which starts at the global"
            " model; raise training.local_steps or leave it out"
        )
    if (strategy.buffer is not None) != plan.is_asynchronous:
        yield 'strategy.buffer goes with strategy.name "fedbuff", and that needs it'
    if plan.is_asynchronous:
        if mechanism != "local":
            yield 'with strategy.name "fedbuff" privacy.mechanism is "local"'
        if (strategy.buffer or 0) < plan.cohort.minimum:
            yield "strategy.buffer is at least cohort.minimum: each buffer is a sum of its own"
        if plan.participation.fraction < 1:
            yield 'with strategy.name "fedbuff" sites come when they are ready: no fraction'
    if strategy.name == "scaffold":
        if (training.optimizer, training.momentum) != ("sgd", 0.0):
            yield 'strategy.name "scaffold" needs training.optimizer "sgd" without momentum'
        if strategy.weighting != "uniform":
            yield 'with strategy.name "scaffold" strategy.weighting is "uniform"'


def load_plan(path: str | Path) -> Plan:
    """The plan in a TOML file; InputError with file, line, field and what is allowed."""
    return load_toml(path, Plan)
