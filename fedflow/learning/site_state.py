"""What a site keeps from round to round, and never sends.

======================  =====  ==================================================================
``~control``            [d]    SCAFFOLD (Karimireddy et al., ICML 2020, option II): the site's
                               control variate c_i, which its own update says its mean gradient is
``~personal``           [d]    with ``evaluation.personalised``: the model w that it trained from
                               plus its own update u, the site's personalised model
the local layers        ..     by the names of their parameters (:mod:`..local_layers`)
======================  =====  ==================================================================

All are functions of public models and of the site's own *noised* steps, which were paid for when
the update they end in was released: post-processing, which costs no privacy beyond that. So they
may also decide what an evaluation counts. (Only SCAFFOLD with mechanism "site" keeps something with
a mere share of noise in it; what leaves is clipped and noised whatever it holds.)

Losing them costs accuracy, not privacy: a site without them starts at zero, or at the public
initial layers, and judges the global model in place of its own.
"""

from __future__ import annotations

import contextlib

import numpy as np
from numpy.typing import NDArray

from fedflow.errors import Violation
from fedflow.learning.local_layers import is_local, split_layers
from fedflow.learning.model_file import Arrays, ModelSpec, decode_model, flatten, unflatten
from fedflow.learning.plan import Plan
from fedflow.learning.server_state import CONTROL, parameters
from fedflow.learning.workload import Workload, initial_model, model_spec

PERSONAL = "~personal"


def site_spec(whole: ModelSpec, plan: Plan) -> ModelSpec | None:
    """Names and shapes of what a site keeps for a plan; None where it keeps nothing.

    ``whole`` is that of all the workload's parameters. Refusal as :func:`split_layers`.
    """
    if not plan.keeps_at_sites:
        return None
    shared, layers = split_layers(whole.zeros(), plan)
    dimension = ModelSpec.of(shared).dimension
    flat = {
        CONTROL: plan.strategy.name == "scaffold",
        PERSONAL: plan.evaluation.personalised,
    }
    kept = {name: np.zeros(dimension, np.float32) for name, wanted in flat.items() if wanted}
    return ModelSpec.of(layers | kept)


def read_kept(data: bytes, workload: Workload, plan: Plan) -> Arrays | None:
    """The tensors in a file that a site kept; None for no file, and for one that is of no use."""
    if data and (spec := site_spec(model_spec(workload), plan)):
        with contextlib.suppress(Violation):
            return decode_model(data, spec)
    return None


def correction(state: Arrays, own: Arrays | None) -> NDArray[np.float64] | None:
    """SCAFFOLD's c - c_i, float64[d], to be added to every local gradient; None without SCAFFOLD.

    ``state`` are the tensors of the global file, ``own`` what the site kept.
    """
    if CONTROL not in state:
        return None
    control = state[CONTROL].astype(np.float64)
    return control if own is None else control - own[CONTROL].astype(np.float64)


def site_model(workload: Workload, state: Arrays, own: Arrays | None, plan: Plan) -> Arrays:
    """All parameters of the global model at a site: with its own layers where those are local.

    A site that has none yet takes the public initial ones. Of a method without a gradient it is the
    whole ``state``, as the model is.
    """
    if plan.is_method:
        return state
    if not plan.training.local_layers:
        return parameters(state)
    layers = initial_model(workload) if own is None else own
    return parameters(state) | {n: layer for n, layer in layers.items() if is_local(n, plan)}


def personal_model(model: Arrays, own: Arrays | None, plan: Plan) -> Arrays:
    """The personalised model of a site whose :func:`site_model` is ``model``.

    It is the same one at a site that has not trained yet.
    """
    if own is None or PERSONAL not in own:
        return model
    shared, layers = split_layers(model, plan)
    return unflatten(own[PERSONAL], ModelSpec.of(shared)) | layers


def parted(
    change: NDArray[np.float32], model: Arrays, plan: Plan
) -> tuple[NDArray[np.float32], Arrays]:
    """A trained change of all of ``model``: what is released of it, float32[d], and the new layers.

    ``change`` is in the order of all names; so is what is released, of those that travel.
    """
    if not plan.training.local_layers:
        return change, {}
    shared, layers = split_layers(unflatten(change, ModelSpec.of(model)), plan)
    return flatten(shared), {name: model[name] + layers[name] for name in layers}


def after_round(
    state: Arrays,
    own: Arrays | None,
    vector: NDArray[np.float32] | NDArray[np.int64],
    plan: Plan,
    *,
    sites: int,
    value_range: float,
    layers: Arrays | None = None,
) -> Arrays | None:
    """What the site keeps once the noised ``vector`` it trained is in a sum.

    ``state`` are the tensors of the global file it trained from; ``vector``, ``sites`` and
    ``value_range`` those of :func:`~fedflow.learning.contribution.contribution`; ``layers`` the
    site's own after training.
    """
    kept = dict(layers or {})
    if CONTROL in state:
        kept[CONTROL] = _control(state, own, vector, plan, sites, value_range)
    if plan.evaluation.personalised:
        kept[PERSONAL] = flatten(parameters(state)) + vector.astype(np.float32)
    return kept or None


def _control(
    state: Arrays,
    own: Arrays | None,
    vector: NDArray[np.float32] | NDArray[np.int64],
    plan: Plan,
    sites: int,
    value_range: float,
) -> NDArray[np.float32]:
    change = vector[: state[CONTROL].size].astype(np.float64)
    if vector.dtype == np.int64:
        change /= plan.coding(sites, value_range).values.scale
    path = plan.local_steps * plan.training.learning_rate
    before = np.zeros(change.size) if own is None else own[CONTROL].astype(np.float64)
    moved: NDArray[np.float64] = before - state[CONTROL].astype(np.float64) - change / path
    return moved.astype(np.float32)
