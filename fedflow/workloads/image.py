"""Classes of small images, by a convolutional network whose activations are bounded.

Papernot et al., "Tempered sigmoid activations for deep learning with differential privacy" (AAAI
2021): with tanh, gradients stay below the clipping norm. No layer normalises over a batch.

Data: one safetensors file per site (no pickle can be in it) with the tensors

* ``images`` uint8[N, side, side], or uint8[N, side, side, channels];
* ``labels`` int64[N] or uint8[N], 0 to classes - 1;
* ``ids`` int64[N], optional: whose image it is. Without it each image is a person of its own.

The workload ``image`` is for 28 x 28 grey pixels and ten classes, as MNIST has. For others install
one of your own, ``workload = Images("x-rays", side=64, channels=1, classes=2)``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from fedflow.errors import InputError
from fedflow.learning.model_file import Arrays
from fedflow.learning.public_weights import public_model
from fedflow.learning.workload import PersonData, group_by_person

MAX_ROWS = 8  #: images of one person, where the file has ids
_LABEL_TYPES = (np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.int64))


class TanhCnn(torch.nn.Module):
    """Two convolutions and two linear layers: [B, R, side * side * channels] to [B, R, classes].

    For MNIST that is the network of Papernot et al., 26,010 parameters. ``side`` is at least 17.
    """

    def __init__(self, side: int = 28, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.side, self.channels, self.classes = side, channels, classes
        once = (side - 4) // 2  # after a convolution of stride 2 and a pooling of stride 1
        left = (once - 4) // 2
        self.first = torch.nn.Conv2d(channels, 16, 8, stride=2, padding=2)
        self.second = torch.nn.Conv2d(16, 32, 4, stride=2)
        self.third = torch.nn.Linear(32 * left * left, 32)
        self.last = torch.nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One channel after the other, each row by row."""
        pool = torch.nn.functional.max_pool2d
        planes = x.reshape(-1, self.channels, self.side, self.side)
        planes = pool(torch.tanh(self.first(planes)), 2, 1)
        planes = pool(torch.tanh(self.second(planes)), 2, 1)
        scores: torch.Tensor = self.last(torch.tanh(self.third(planes.flatten(1))))
        return scores.view(*x.shape[:-1], self.classes)


class Images:
    """A workload of images of one size. Its target is a class, so its metric is accuracy."""

    unit_column = "ids"
    score_range = (0.0, 1.0)

    def __init__(
        self, name: str, *, side: int, channels: int, classes: int, reference_persons: int = 1000
    ) -> None:
        self.name, self.reference_persons = name, reference_persons
        self.side, self.channels, self.classes = side, channels, classes

    def build_model(self) -> torch.nn.Module:
        """:class:`TanhCnn` from the public seed 0."""
        return public_model(lambda: TanhCnn(self.side, self.channels, self.classes))

    def load(self, path: str | Path) -> PersonData:
        """One site's images, brightness 0 to 1; InputError naming the tensor and its row."""
        where = str(path)
        tensors = _read(where)
        images, labels = _tensor(tensors, "images", where), _tensor(tensors, "labels", where)
        shapes: list[tuple[int, ...]] = [(self.side, self.side, self.channels)]
        shapes += [(self.side, self.side)] if self.channels == 1 else []
        if images.dtype != np.uint8 or images.shape[1:] not in shapes:
            raise InputError(
                f"is {images.dtype}{list(images.shape)}",
                where=where,
                field="tensor images",
                allowed=" or ".join(f"uint8{['N', *shape]}".replace("'", "") for shape in shapes),
            )
        self._check_labels(labels, len(images), where)
        ids = tensors.get("ids")
        if ids is not None and (ids.dtype != np.int64 or ids.shape != (len(images),)):
            what = f"is {ids.dtype}{list(ids.shape)}"
            raise InputError(what, where=where, field="tensor ids", allowed=f"int64[{len(images)}]")
        planes = images.reshape(-1, self.side * self.side, self.channels).swapaxes(1, 2)
        return group_by_person(
            planes.reshape(len(images), -1).astype(np.float32) / np.float32(255.0),
            labels.astype(np.float32),
            [str(i) for i in (range(len(images)) if ids is None else ids.tolist())],
            dataset=self.name,
            max_rows=1 if ids is None else MAX_ROWS,
            where=where,
        )

    def _check_labels(self, labels: NDArray[np.generic], images: int, where: str) -> None:
        if labels.dtype not in _LABEL_TYPES or labels.shape != (images,):
            raise InputError(
                f"is {labels.dtype}{list(labels.shape)}",
                where=where,
                field="tensor labels",
                allowed=f"uint8, int32 or int64 [{images}], one for each image",
            )
        numbers = labels.astype(np.int64)
        wrong = np.flatnonzero((numbers < 0) | (numbers >= self.classes))
        if len(wrong):
            raise InputError(
                f"label {numbers[wrong[0]]} is no class",
                where=f"{where}: row {wrong[0]}",
                field="tensor labels",
                allowed=f"0 to {self.classes - 1}",
            )

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats: ``scores`` [B, R, classes], ``y`` [B, R] to [B, R]."""
        flat = torch.nn.functional.cross_entropy(
            scores.flatten(0, -2), y.flatten().long(), reduction="none"
        )
        return flat.view(y.shape)


workload = Images("image", side=28, channels=1, classes=10)


def _read(where: str) -> Arrays:
    try:
        return load(Path(where).read_bytes())
    except OSError as error:
        why = error.strerror or "is not readable"
        raise InputError(f"the data file cannot be read: {why}", where=where) from None
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise InputError("the data file is not a safetensors file", where=where) from None


def _tensor(tensors: Arrays, name: str, where: str) -> NDArray[np.generic]:
    if name not in tensors:
        raise InputError(
            "is missing", where=where, field=f"tensor {name}", allowed="images, labels"
        )
    return tensors[name]
