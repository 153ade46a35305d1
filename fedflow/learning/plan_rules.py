"""Which settings of a plan make no sense together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan

MOST_STEPS = 10_000
#: What each method needs under [method], and what it may have beside.
SIZES: dict[str, tuple[set[str], set[str]]] = {
    "gbdt": ({"trees", "depth"}, {"bins", "ridge"}),
    "forest": ({"trees", "depth"}, {"bins", "ridge"}),
    "kmeans": ({"clusters"}, set()),
    "linear": (set(), {"ridge"}),
    "prototypes": ({"clusters", "neighbours"}, set()),
    "histogram": ({"bins"}, set()),
    "moments": ({"bins"}, set()),
}


def misfits(plan: Plan) -> Iterator[str]:
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
    if plan.local_steps > MOST_STEPS:
        yield f"training.local_epochs makes {plan.local_steps} steps a round, over {MOST_STEPS}"
    if (privacy.unit == "site") != (mechanism == "site"):
        yield f'privacy.mechanism "{mechanism}" cannot protect unit "{privacy.unit}"'
    if plan.is_describing == plan.is_scored:
        problem = "only describes data: leave out" if plan.is_describing else "needs"
        yield f'strategy.name "{strategy.name}" {problem} [evaluation]'
    if plan.is_describing and plan.is_prepared:
        yield f'strategy.name "{strategy.name}" describes data as they are: no [preprocessing]'
    if (strategy.name == "fedsgd" or plan.is_method) != (mechanism == "summed"):
        yield f'strategy.name "{strategy.name}" does not go with privacy.mechanism "{mechanism}"'
    needed, allowed = SIZES.get(strategy.name, (set(), set()))
    given = {name for name, size in plan.method if size is not None}
    for name in sorted(needed - given):
        yield f'method.{name} is missing for strategy.name "{strategy.name}"'
    for name in sorted(given - needed - allowed):
        yield f'method.{name} is not for strategy.name "{strategy.name}"'
    yield from _of_losses(plan)
    yield from _of_groups(plan)
    if plan.secure_aggregation.density < 1 and strategy.name not in ("fedavg", "fedsgd"):
        yield (
            f'strategy.name "{strategy.name}" needs all coordinates in every round: leave out'
            " secure_aggregation.density"
        )
    if strategy.name in ("gbdt", "forest"):
        yield from _of_trees(plan)
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
    at_sites = {
        "training.local_layers": bool(training.local_layers),
        "evaluation.personalised": plan.evaluation.personalised,
    }
    for name in (name for name, wanted in at_sites.items() if wanted):
        if mechanism != "local":
            yield f'{name} needs privacy.mechanism "local": else what a site keeps lacks its noise'
        if plan.plan.rounds == 0:
            yield f"{name} needs training: plan.rounds is 0"
    if strategy.name == "scaffold":
        if (training.optimizer, training.momentum) != ("sgd", 0.0):
            yield 'strategy.name "scaffold" needs training.optimizer "sgd" without momentum'
        if strategy.weighting != "uniform":
            yield 'with strategy.name "scaffold" strategy.weighting is "uniform"'


def _of_losses(plan: Plan) -> Iterator[str]:
    weights, training = plan.training.class_weights, plan.training
    if len(weights) == 1:
        yield "training.class_weights has a number for each class, two at least"
    if weights and plan.evaluation.metric == "mse":
        yield 'training.class_weights is for classes, and metric "mse" has none'
    for name, used in (
        ("class_weights", bool(weights)),
        ("robust_loss", training.robust_loss is not None),
    ):
        if used and plan.is_method:
            yield f'training.{name} needs a loss, and strategy.name "{plan.strategy.name}" has none'


def _of_groups(plan: Plan) -> Iterator[str]:
    groups, asked = plan.participation.groups, plan.participation
    if groups is None:
        return
    if plan.strategy.name not in ("fedavg", "fedsgd"):
        yield f'strategy.name "{plan.strategy.name}" does not go with participation.groups'
    if asked.fraction < 1 or asked.spare or asked.strata or asked.selection != "random":
        yield "with participation.groups the groups say who is asked: leave out the rest"
    if plan.plan.rounds % groups:
        yield f"plan.rounds is a multiple of participation.groups, {groups}: the rounds of a cycle"
    if plan.evaluation.every % groups:
        yield (
            f"evaluation.every is a multiple of participation.groups, {groups}: within a cycle the"
            " model stays as it is"
        )
    if plan.privacy.clipping_quantile is not None:
        yield "with participation.groups no privacy.clipping_quantile: wrong sites would move it"


def _of_trees(plan: Plan) -> Iterator[str]:
    strategy, trees, rounds = plan.strategy, plan.method.trees, plan.plan.rounds
    if trees is not None and rounds and trees % rounds:
        yield f"method.trees {trees} are not the same number in each of plan.rounds {rounds}"
    if strategy.server_optimizer != "sgd":
        yield f'strategy.name "{strategy.name}" has no other server_optimizer than "sgd"'
    if strategy.name == "forest" and strategy.server_momentum:
        yield 'strategy.server_momentum is not for strategy.name "forest"'
    if strategy.name == "forest" and rounds == 1 and strategy.server_learning_rate != 1.0:
        yield (
            'with strategy.name "forest" in one round leaves say what their people are: leave out'
            " strategy.server_learning_rate"
        )
