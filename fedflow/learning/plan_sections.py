"""The sections of a plan's TOML file: every field with its range, unit and meaning."""

from __future__ import annotations

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

from fedflow.learning.metrics import MetricName
from fedflow.wire.messages import MAX_SITES

_WIDEST = 1_000_000.0
_RANGE = (
    '"auto" or a number over 0 and at most 1e+06; coordinates are clamped to plus or minus this'
)
_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"


class Section(BaseModel):
    """Frozen, strict, and closed to what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PlanSection(Section):
    """``[plan]``: what is trained and for how long."""

    name: str = Field(pattern=_NAME, description="lower-case letters, digits and dashes")
    workload: str = Field(pattern=_NAME, description="the name of an installed workload")
    rounds: int = Field(
        ge=0, le=10_000, description="training rounds; 0 scores the first model and trains nothing"
    )


class CohortSection(Section):
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


class ParticipationSection(Section):
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
    groups: int | None = Field(
        default=None,
        ge=3,
        le=1_000,
        description="sums of a cycle, each of other sites, whose median is the step; odd is best",
    )


class StrategySection(Section):
    """``[strategy]``: how the sum of what sites send changes the global model."""

    name: Literal[
        "fedavg",
        "fedsgd",
        "scaffold",
        "fedbuff",
        "gbdt",
        "forest",
        "kmeans",
        "linear",
        "prototypes",
        "histogram",
        "moments",
    ] = Field(
        description="the mean of updates, one step along the mean gradient, the mean of updates"
        " corrected by control variates, or of the first that are ready, however old; or one of"
        " the methods without a gradient, see [method]"
    )
    buffer: int | None = Field(
        default=None, ge=2, le=MAX_SITES, description="of fedbuff: updates in a sum"
    )
    max_staleness: int = Field(
        default=20, ge=0, le=1_000, description="of fedbuff: rounds after which a site starts anew"
    )
    server_learning_rate: float = Field(
        default=1.0,
        gt=0,
        le=1_000,
        description="factor on the mean; 1 is plain averaging of updates; of gbdt: on the mean of"
        " a round's trees",
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


class MethodSection(Section):
    """``[method]``: sizes of what the methods without a gradient sum (`fedflow.learning.methods`).

    Each method says which of them it needs; the others are left out.
    """

    trees: int | None = Field(default=None, ge=1, le=2_000, description="of gbdt, forest: in all")
    depth: int | None = Field(default=None, ge=1, le=10, description="of gbdt, forest: of a tree")
    bins: int | None = Field(
        default=None,
        ge=2,
        le=1_024,
        description="of histogram, moments: per feature; of gbdt, forest: that trees divide"
        " between, where the workload's cuts are not to be used",
    )
    clusters: int | None = Field(
        default=None, ge=2, le=10_000, description="of kmeans, prototypes: how many"
    )
    neighbours: int | None = Field(
        default=None, ge=1, le=1_000, description="of prototypes: that a prediction is the mean of"
    )
    ridge: float | None = Field(
        default=None, ge=0, le=1e9, description="of linear, gbdt, forest: pull to zero, in people"
    )


class ColumnSection(Section):
    """One of ``preprocessing.columns``: what becomes of one column at every site."""

    name: str = Field(min_length=1, max_length=63, description="of the workload's column")
    fill: float = Field(description="what a missing value becomes, in the column's own unit")
    centre: float = Field(default=0.0, description="taken off; not of a category")
    scale: float = Field(default=1.0, gt=0, description="divided by; not of a category")
    keep: tuple[int, ...] | None = Field(
        default=None, max_length=65_536, description='codes that do not become "other"; or all'
    )


class PreprocessingSection(Section):
    """``[preprocessing]``: one imputer and scaler for all sites; `fedflow.learning.preprocessing`.

    Numbers that describe data are a release: they come from a describing job, or from what the
    columns mean.
    """

    clamp: float = Field(
        default=5.0, gt=0, le=1_000, description="scaled numbers stay within plus or minus this"
    )
    columns: tuple[ColumnSection, ...] = Field(
        default=(), max_length=4_096, description="every column of the workload, in order"
    )


class TrainingSection(Section):
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
    class_weights: tuple[Annotated[float, Field(gt=0, le=1_000)], ...] = Field(
        default=(),
        max_length=1_000,
        description="factors on the loss of a row, by its class from 0 on; public numbers",
    )
    robust_loss: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="q of the generalised cross entropy, which bounds what a wrong label does",
    )
    local_layers: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.*?-]{1,200}$")], ...] = Field(
        default=(),
        max_length=64,
        description='patterns of parameters that each site keeps to itself, such as "head.*"',
    )
    max_physical_batch: int = Field(
        default=512, ge=1, le=65_536, description="units worked on at once; memory, not privacy"
    )


class PrivacySection(Section):
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


class EvaluationSection(Section):
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
    personalised: bool = Field(
        default=False,
        description="held-out units also count by each site's own model, after its last training",
    )
    fairness_bins: int | None = Field(
        default=None, ge=2, le=100, description="bins that sites are counted in, by their own score"
    )
    fairness_between: tuple[float, float] | None = Field(
        default=None, description="scores between which the bins are; all scores that make sense"
    )

    @model_validator(mode="after")
    def _between(self) -> Self:
        if self.fairness_between is not None:
            if self.fairness_bins is None:
                raise ValueError("fairness_between is for fairness_bins")
            if not self.fairness_between[0] < self.fairness_between[1]:
                raise ValueError("fairness_between is two scores, the smaller one first")
        return self


class StoppingSection(Section):
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


class SecureAggregationSection(Section):
    """``[secure_aggregation]``: how an update becomes integers, and how masks are agreed on."""

    bits: int = Field(ge=8, le=32, description="bits per coordinate of a training round")
    value_range: Literal["auto"] | float = Field(description=_RANGE)
    density: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="of the coordinates, trained and sent in a round; 1 is all of them",
    )
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


class DeadlinesSection(Section):
    """``[deadlines]``: how long the coordinator waits."""

    round_seconds: float = Field(gt=0, le=604_800, description="seconds for local training")
    leg_seconds: float = Field(
        gt=0, le=604_800, description="seconds for one leg of secure aggregation"
    )
