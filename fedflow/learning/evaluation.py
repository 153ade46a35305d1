"""Scores models on held-out persons through noised, summed counts.

Every site counts its held-out persons on an integer grid, by label and score bin or as wrong and
right (:mod:`fedflow.learning.metrics`). What is protected as a whole carries the same total weight:
with unit "person" each person, however many rows they have, shared equally by their rows; with
"record" each row; with "site" the whole site, shared equally by its persons.

Each site adds its share of discrete Gaussian noise; only the sum over sites
is ever opened, and the score is computed from it. Shares are sized so that the honest sites of the
smallest allowed sum together add the plan's noise (:mod:`fedflow.learning.scoring`).

A plan may have two more things counted in the same sum. Held-out persons once more, by the site's
own model: what personalisation gains is told of all sites together, of none alone. And sites, by
the score of the global model on their own persons: how alike it serves them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Refusal
from fedflow.learning.auc import exact_auc
from fedflow.learning.methods import method_of
from fedflow.learning.model_file import Arrays
from fedflow.learning.plan import Plan
from fedflow.learning.plan_sections import EvaluationSection
from fedflow.learning.preprocessing import prepared
from fedflow.learning.scoring import (
    fairness_between,
    fairness_weight,
    noise_share_stddev,
    unit_weight,
)
from fedflow.learning.server_state import parameters
from fedflow.learning.site_state import personal_model, site_model
from fedflow.learning.workload import PersonData, Persons, Workload, model_with, units_of
from fedflow.privacy.noise import discrete_gaussian

#: Persons in one forward pass; memory only.
_AT_ONCE = 1024


def score_counts(
    workload: Workload, persons: Persons, state: Arrays, plan: Plan
) -> NDArray[np.int64]:
    """What ``persons`` put in the sum of :mod:`fedflow.learning.metrics`, int64[n] in grid units.

    They are prepared already. ``state`` has all parameters of the model, a site's own layers too.
    Not private by itself; see :func:`noisy_counts`.
    """
    persons = units_of(persons, plan.privacy.unit)
    scores, target = _judged(workload, persons, state, plan)
    weights = _row_weights(persons.mask, plan)[persons.mask]
    out = np.zeros(plan.score_length, np.int64)
    if plan.evaluation.metric == "auc":
        bins = len(out) // 2
        low, high = workload.score_range
        share = (_probabilities(scores) - low) / (high - low)
        at = np.clip(np.floor(share * bins), 0, bins - 1).astype(np.int64)
        labels = (target > 0.5).astype(np.int64)
        np.add.at(out, (labels * bins + at)[persons.mask], weights)
        return out
    good = _goodness(scores, target, plan.evaluation)[persons.mask]
    parts = np.floor(good * weights + 0.5).astype(np.int64)
    out[:] = (weights - parts).sum(), parts.sum()
    return out


def noisy_counts(
    workload: Workload,
    data: PersonData,
    state: Arrays,
    plan: Plan,
    csprng: Csprng,
    *,
    own: Arrays | None = None,
) -> NDArray[np.int64]:
    """All that one site puts in the sum of an evaluation, with its share of noise: int64.

    :func:`score_counts` of the held-out persons by the global model, then by the site's own, then
    :func:`fairness_counts`, as far as the plan has them. ``state`` holds the tensors of the model
    file, ``own`` what the site kept: of persons it trained on, noised values only.
    """
    judged = site_model(workload, state, own, plan)
    parts = [score_counts(workload, data.holdout, judged, plan)]
    if plan.evaluation.personalised:
        personal = personal_model(judged, own, plan)
        parts.append(score_counts(workload, data.holdout, personal, plan))
    if plan.evaluation.fairness_bins is not None:
        parts.append(fairness_counts(workload, data.holdout, judged, plan))
    counts = np.concatenate(parts)
    return counts + discrete_gaussian(noise_share_stddev(plan), counts.size, csprng)


def fairness_counts(
    workload: Workload, persons: Persons, state: Arrays, plan: Plan
) -> NDArray[np.int64]:
    """The site's weight in the bin of its own exact score, int64[K]; nothing without persons.

    They are prepared already.
    """
    bins = plan.evaluation.fairness_bins or 0
    out = np.zeros(bins, np.int64)
    if len(persons):
        low, high = fairness_between(plan)
        share = (_exact(workload, [(persons, state)], plan) - low) / (high - low)
        out[int(np.clip(np.floor(share * bins), 0, bins - 1))] = fairness_weight(plan)
    return out


def exact_score(workload: Workload, persons: Persons, state: Arrays, plan: Plan) -> float:
    """The metric of ``[evaluation]`` over all rows, without bins or noise.

    Every person weighs the same. ``persons`` as the workload loads them. Not private by itself.
    """
    return exact_score_of_sites(workload, [(persons, state)], plan)


def exact_score_of_sites(
    workload: Workload, sites: Sequence[tuple[Persons, Arrays]], plan: Plan
) -> float:
    """:func:`exact_score` over the persons of all ``sites`` together, each by its own model."""
    ready = [(prepared(persons, plan, workload), state) for persons, state in sites]
    return _exact(workload, ready, plan)


def _exact(workload: Workload, sites: Sequence[tuple[Persons, Arrays]], plan: Plan) -> float:
    judged = [_judged(workload, persons, state, plan) for persons, state in sites]
    return score_of_rows(
        torch.cat([scores for scores, _ in judged]),
        np.concatenate([target for _, target in judged]),
        np.concatenate([persons.mask for persons, _ in sites]),
        plan.evaluation,
    )


def score_of_rows(
    scores: torch.Tensor,
    target: NDArray[np.float32],
    mask: NDArray[np.bool_],
    judged: EvaluationSection,
) -> float:
    """:func:`exact_score` from what was said, [P, R, ..], and what is true."""
    weights = (mask / np.maximum(mask.sum(axis=1, keepdims=True), 1))[mask]
    if judged.metric == "auc":
        return exact_auc(_probabilities(scores)[mask], target[mask].astype(np.float64), weights)
    good = float(np.average(_goodness(scores, target, judged)[mask], weights=weights))
    return good if judged.metric == "accuracy" else (1.0 - good) * (judged.error_bound or 1.0)


def model_scores(workload: Workload, model: Arrays, persons: Persons) -> torch.Tensor:
    """What the workload's model says, float64[P, R, ..]."""
    built = model_with(workload, model).eval()
    x = torch.from_numpy(persons.x)
    with torch.no_grad():
        parts = [built(x[at : at + _AT_ONCE]).double() for at in range(0, max(len(x), 1), _AT_ONCE)]
    return torch.cat(parts)


def _judged(
    workload: Workload, persons: Persons, state: Arrays, plan: Plan
) -> tuple[torch.Tensor, NDArray[np.float32]]:
    """What the model says, float64[P, R, ..], and what is true, float32[P, R, ..]."""
    method = method_of(plan)
    if method is not None:
        scores, target = method.judged(workload, persons, state, plan)
        return torch.from_numpy(scores), target
    return model_scores(workload, parameters(state), persons), persons.y


def _probabilities(scores: torch.Tensor) -> NDArray[np.float64]:
    """Predicted probability of label 1, float64[P, R]; 0 where the score is not a number."""
    if scores.ndim != 2:
        raise Refusal(
            "metric-unsupported",
            'metric "auc" needs one score per row, and this workload\'s model gives'
            f" {tuple(scores.shape[2:])} of them; set evaluation.metric to another",
        )
    out: NDArray[np.float64] = torch.nan_to_num(torch.sigmoid(scores), nan=0.0).numpy()
    return out


def _goodness(
    scores: torch.Tensor, y: NDArray[np.float32], judged: EvaluationSection
) -> NDArray[np.float64]:
    """How right each row is, from 0 to 1, float64[P, R]; a row of several targets has their mean.

    A score that is not a number is wrong.
    """
    target = torch.from_numpy(y).double()
    if judged.metric == "mse":
        _fitting(scores.shape == target.shape, judged.metric, "one value per target")
        error = (scores - target) ** 2 / (judged.error_bound or 1.0)
        good = 1.0 - error.clamp(max=1.0)
    elif scores.ndim == target.ndim + 1:
        good = (scores.argmax(dim=-1) == target).double() * scores.isfinite().all(dim=-1)
    else:
        _fitting(scores.shape == target.shape, judged.metric, "one score per target or per class")
        good = ((scores > 0) == (target > 0.5)).double() * scores.isfinite()
    good = torch.nan_to_num(good, nan=0.0)
    out: NDArray[np.float64] = (
        good.flatten(2).mean(dim=2).numpy() if good.ndim > 2 else good.numpy()
    )
    return out


def _fitting(fits: bool, metric: str, what: str) -> None:
    if not fits:
        raise Refusal(
            "metric-unsupported",
            f'metric "{metric}" needs {what}, which this workload\'s model does not'
            " give; set evaluation.metric to another",
        )


def _row_weights(mask: NDArray[np.bool_], plan: Plan) -> NDArray[np.int64]:
    """int64[P, R]: what each row counts. A unit's rows sum to exactly its total weight."""
    whole = unit_weight(plan)
    units = np.full((len(mask), 1), whole)
    if plan.privacy.unit == "site" and len(mask):
        units[:] = whole // len(mask)
        units[: whole % len(mask)] += 1
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    rank = np.cumsum(mask, axis=1) - 1
    weights = units // counts + (rank < units % counts)
    return np.where(mask, weights, 0).astype(np.int64)
