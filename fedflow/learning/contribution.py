"""What one site contributes to one round, made where its data are: in the training process.

Nothing leaves that process without its noise. Local noise gives a float32 update, to be coded and
masked; with noise in shares it is the integers themselves, noised on the grid of the round.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Aborted
from fedflow.learning.batches import poisson_batches
from fedflow.learning.clipping import Clipper
from fedflow.learning.dpsgd import train_plain, train_private
from fedflow.learning.evaluation import noisy_counts
from fedflow.learning.methods import Method, method_of, unit_batches
from fedflow.learning.model_file import Arrays
from fedflow.learning.objective import objective
from fedflow.learning.plan import Plan
from fedflow.learning.preprocessing import prepared_data
from fedflow.learning.server_state import clipping_norm_of, parameters, rounds_done
from fedflow.learning.site_state import after_round, correction, parted, site_model
from fedflow.learning.sparse import Places, sent_places
from fedflow.learning.summed_noise import clipped, noisy_steps, unit_sensitivity, with_bit
from fedflow.learning.update_coding import UpdateCoding
from fedflow.learning.workload import PersonData, Persons, Workload, model_with, units_of
from fedflow.privacy.noise import poisson_mask
from fedflow.wire.messages import Kind


class Made(NamedTuple):
    """A site's ``vector`` for a round, and what it keeps once that is in a sum, if anything."""

    vector: NDArray[np.float32] | NDArray[np.int64]
    own: Arrays | None


def contribution(
    workload: Workload,
    data: PersonData,
    state: Arrays,
    plan: Plan,
    kind: Kind,
    *,
    sites: int,
    value_range: float,
    csprng: Csprng,
    own: Arrays | None = None,
) -> Made:
    """A site's vector for a round of ``kind``, with all the noise that this site adds.

    ``state`` holds the tensors of the model file (:mod:`fedflow.learning.server_state`); ``sites``
    are those in the roster and ``value_range`` is the round's; ``own`` is what the site kept
    (:mod:`fedflow.learning.site_state`). Training gives float32[k] with local noise, int64[k] grid
    steps with noise in shares (int64[k + 1] with adaptive clipping), where k is d or, in a sparse
    update, the number of coordinates that are sent, and what the site is to keep; evaluation
    int64, what :mod:`~fedflow.learning.evaluation` counts. Its cost is the plan's
    :func:`~fedflow.privacy.plan_cost.training_event` or ``evaluation_event``. ``data`` are as the
    workload loads them: they are :func:`prepared_data` here. Aborted and Refusal as that,
    :func:`train_private` and :func:`noisy_steps`.
    """
    data = prepared_data(data, plan, workload)
    if kind is Kind.EVALUATE:
        return Made(noisy_counts(workload, data, state, plan, csprng, own=own), None)
    layers: Arrays = {}
    vector: NDArray[np.float32] | NDArray[np.int64]
    places = sent_places(plan, _dimension(parameters(state)), rounds_done(state))
    if plan.privacy.mechanism == "local":
        model, steering = site_model(workload, state, own, plan), correction(state, own)
        change = train_private(
            workload, data, model, plan, csprng, correction=steering, places=places
        )
        vector, layers = parted(change, model, plan)
    else:
        coding = plan.coding(sites, value_range)
        vector = _with_share(workload, data, state, own, plan, coding, csprng, places)
    kept = after_round(
        state, own, vector, plan, sites=sites, value_range=value_range, layers=layers
    )
    if places is not None and plan.privacy.mechanism == "local":
        vector = vector[places]  # the others rest: of them there is nothing to send
    return Made(vector, kept)


def _with_share(
    workload: Workload,
    data: PersonData,
    state: Arrays,
    own: Arrays | None,
    plan: Plan,
    coding: UpdateCoding,
    csprng: Csprng,
    places: Places | None,
) -> NDArray[np.int64]:
    """What a site computed, in steps of the round's grid, with its share of the noise."""
    arrays = parameters(state)
    norm = clipping_norm_of(state, plan)
    method = method_of(plan)
    if method is not None:
        chosen = _sampled(data, plan, csprng.child("sampling"))
        values = summed_values(method, workload, chosen, state, plan)
    elif plan.privacy.mechanism == "summed":
        values = summed_gradient(workload, data, arrays, plan, norm, csprng.child("sampling"))
        values = values if places is None else values[places]
    else:
        sampling, steering = csprng.child("sampling"), correction(state, own)
        values = clipped_update(
            workload, data, arrays, plan, norm, sampling, correction=steering, places=places
        )
    sensitivity = unit_sensitivity(plan, norm, workload.reference_persons)
    return noisy_steps(values, plan, coding, sensitivity, csprng.child("noise"))


def summed_values(
    method: Method, workload: Workload, units: Persons, state: Arrays, plan: Plan
) -> NDArray[np.float64]:
    """The sum over ``units`` of what each adds, clipped: float64[d]. Not noised yet."""
    norm = plan.privacy.clipping_norm
    total = np.zeros(method.dimension(workload, plan))
    for part in unit_batches(units, plan.training.max_physical_batch):
        values = method.unit_values(workload, part, state, plan)
        finite = np.isfinite(values).all(axis=1)
        values[~finite] = 0.0  # a refusal would tell of a unit
        lengths = np.linalg.norm(values, axis=1)
        total += (values * np.minimum(1.0, norm / np.maximum(lengths, norm))[:, None]).sum(axis=0)
    return total


def _sampled(data: PersonData, plan: Plan, csprng: Csprng) -> Persons:
    units, rate = units_of(data.train, plan.privacy.unit), plan.privacy.sample_rate
    if rate == 1.0:
        return units
    return units.take(poisson_mask(len(units), rate, csprng))


def summed_gradient(
    workload: Workload, data: PersonData, arrays: Arrays, plan: Plan, norm: float, csprng: Csprng
) -> NDArray[np.float64]:
    """Minus the clipped gradient sum of one Poisson sample over the public divisor, float64[d].

    The divisor is ``sample_rate * workload.reference_persons`` at every site, so one unit moves the
    result by at most ``norm`` over it, and nobody's number of units enters. Not noised yet.
    """
    workload = objective(workload, plan)
    model = model_with(workload, arrays)
    clipper = Clipper(
        workload,
        model,
        clipping_norm=norm,
        max_physical_batch=plan.training.max_physical_batch,
    )
    units, rate = units_of(data.train, plan.privacy.unit), plan.privacy.sample_rate
    (batch,) = poisson_batches(units, 1, rate, csprng)
    total: NDArray[np.float64] = clipper.clipped_sum(*batch).numpy()
    return -total / (rate * workload.reference_persons)


def clipped_update(
    workload: Workload,
    data: PersonData,
    arrays: Arrays,
    plan: Plan,
    norm: float,
    csprng: Csprng,
    *,
    correction: NDArray[np.float64] | None = None,
    places: Places | None = None,
) -> NDArray[np.float64]:
    """A whole local training's change of the model, clipped to ``norm``: float64[d] or [d + 1].

    With ``places`` it is the change of these coordinates, which alone are trained.
    The site is the unit, so what happens before clipping may depend on its data in any way. With
    adaptive clipping the last coordinate says whether the update was within the norm. A training
    that diverged counts as no change: a refusal would tell that it did.
    """
    try:
        trained = train_plain(
            workload, data, arrays, plan, csprng, correction=correction, places=places
        )
        change = trained.astype(np.float64)
    except Aborted:
        change = np.zeros(_dimension(arrays))
    if places is not None:
        change = change[places]
    values, within = clipped(change, norm)
    if plan.privacy.clipping_quantile is None:
        return values
    return with_bit(values, within, norm)


def _dimension(arrays: Arrays) -> int:
    return sum(array.size for array in arrays.values())
