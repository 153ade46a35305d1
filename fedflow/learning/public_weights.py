"""Initial weights that every party makes alike: from a public seed, by no library's generator.

The distribution is torch's own for linear and convolutional layers, uniform between plus and minus
1/sqrt(fan-in) (LeCun et al., "Efficient BackProp", 1998); only the source of the draws differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Misuse


def public_model(build: Callable[[], torch.nn.Module], seed: int = 0) -> torch.nn.Module:
    """The model that ``build`` makes, with weights that follow from ``seed`` alone.

    ``build`` runs without memory and without draws (torch's meta device), so it must not compute
    with its weights; Misuse for a model with buffers, whose values would be lost.
    """
    with torch.device("meta"):
        model = build()
    if any(True for _ in model.buffers()):
        raise Misuse("a model with buffers cannot be made from a seed: what they hold is not drawn")
    model = model.to_empty(device="cpu")
    draw_weights(model, Csprng.from_seed(seed.to_bytes(32, "big")))
    return model


def draw_weights(model: torch.nn.Module, csprng: Csprng) -> None:
    """Fill ``model`` from ``csprng``, layer by layer in the order of definition, in place.

    A layer's weight and bias are uniform within 1/sqrt(fan-in), the number of weights of one
    output. Normalisation layers (weights of one dimension) start as the identity. Misuse for
    parameters that belong to no weight.
    """
    with torch.no_grad():
        for layer in model.modules():
            own = dict(layer.named_parameters(recurse=False))
            if not own:
                continue
            weight = own.get("weight")
            if weight is None:
                raise Misuse(f"no rule to draw the weights of a layer {type(layer).__name__}")
            if weight.ndim == 1:
                for name, parameter in own.items():
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                continue
            bound = 1.0 / math.sqrt(weight[0].numel())
            for parameter in own.values():
                drawn = bound * (2.0 * csprng.uniform(parameter.numel()) - 1.0)
                parameter.copy_(torch.from_numpy(drawn.astype(np.float32)).view_as(parameter))
