"""The next character of a play: a causal convolution over characters.

The task is that of LEAF (Caldas et al., arXiv:1812.01097) and McMahan et al. (AISTATS 2017): each
role of each play is a person. The network is a small one of Bai, Kolter and Koltun, "An empirical
evaluation of generic convolutional and recurrent networks for sequence modeling" (2018): dilated
convolutions that see 15 characters. (torch's own LSTM has no gradient per unit; Opacus' takes
a Python step per character.)

Data: one UTF-8 text file per site; each line is a role's name, a tab, and a speech, one line per
speech in the order of the play. A role's speeches are joined by spaces and cut into windows of
``WINDOW`` characters; every character of a window is a target, given those before it. The first
``MAX_ROWS`` windows of a role are used, so that no role is heard more than it is protected for; a
role without one whole window is left out. Characters outside ``ALPHABET`` all count as one more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedflow.errors import InputError
from fedflow.learning.public_weights import public_model
from fedflow.learning.workload import PersonData, group_by_person

#: LEAF's characters without its brackets and digits that plays seldom have. 0 is any other.
ALPHABET = " !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz"
VOCABULARY = 1 + len(ALPHABET)
WINDOW, MAX_ROWS = 80, 8
WIDTH = 64
DILATIONS = (1, 2, 4)
_NUMBER = {character: number for number, character in enumerate(ALPHABET, 1)}


class CausalConvolutions(torch.nn.Module):
    """Tokens [B, R, T] to scores [B, R, T, VOCABULARY], each from itself and the 14 before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(WIDTH, WIDTH, 3, dilation=dilation) for dilation in DILATIONS
        )
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Every convolution looks back only: padding is put before the text."""
        texts = x.flatten(0, -2).long()
        hidden = self.embed(texts).movedim(-1, 1) * WIDTH**0.5
        for layer, dilation in zip(self.convolutions.children(), DILATIONS, strict=True):
            before = torch.nn.functional.pad(hidden, (2 * dilation, 0))
            hidden = hidden + torch.tanh(layer(before))
        scores: torch.Tensor = self.head(hidden.movedim(1, -1))
        return scores.view(*x.shape, VOCABULARY)


class Shakespeare:
    """The workload ``shakespeare``. Metric: accuracy, over all characters of a window."""

    name = "shakespeare"
    unit_column = "role"
    reference_persons = 200
    score_range = (0.0, 1.0)
    vocabulary = VOCABULARY

    def build_model(self) -> torch.nn.Module:
        """:class:`CausalConvolutions` from the public seed 0."""
        return public_model(CausalConvolutions)

    def load(self, path: str | Path) -> PersonData:
        """One site's roles; InputError naming file and line."""
        rows: list[NDArray[np.float32]] = []
        ids: list[str] = []
        for role, text in sorted(_speeches(str(path)).items()):
            for row in windows(text)[:MAX_ROWS]:
                rows.append(row)
                ids.append(role)
        if not rows:
            raise InputError(f"no role says {WINDOW + 1} characters", where=str(path))
        table = np.stack(rows)
        return group_by_person(
            table[:, :-1],
            table[:, 1:],
            ids,
            dataset=self.name,
            max_rows=MAX_ROWS,
            where=str(path),
        )

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats per character: [B, R, T, V] and [B, R, T] to [B, R]."""
        flat = torch.nn.functional.cross_entropy(
            scores.flatten(0, -2), y.flatten().long(), reduction="none"
        )
        return flat.view(y.shape).mean(dim=-1)


workload = Shakespeare()


def windows(text: str) -> list[NDArray[np.float32]]:
    """Tokens float32[WINDOW + 1] of each whole window; a window's last is the next one's first."""
    tokens = np.array([_NUMBER.get(character, 0) for character in text], np.float32)
    return [tokens[at : at + WINDOW + 1] for at in range(0, len(tokens) - WINDOW, WINDOW)]


def _speeches(where: str) -> dict[str, str]:
    try:
        text = Path(where).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError("the data file is not UTF-8 text", where=where) from None
    except OSError as error:
        why = error.strerror or "is not readable"
        raise InputError(f"the data file cannot be read: {why}", where=where) from None
    said: dict[str, list[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        role, tab, speech = line.partition("\t")
        if not tab or not role.strip() or not speech.strip():
            column = "role" if tab and not role.strip() else "speech"
            raise InputError(
                "is empty" if tab else "there is no tab in this line",
                where=f"{where}:{number}",
                field=f"column {column}",
                allowed="a role, a tab, a speech",
            )
        said.setdefault(role.strip(), []).append(speech.strip())
    if not said:
        raise InputError("the data file has no rows", where=where)
    return {role: " ".join(speeches) for role, speeches in said.items()}
