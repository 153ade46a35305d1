"""Spam or ham, from the text of a mail: LoRA on a frozen sentence encoder.

Data: one CSV file per site, UTF-8, with the columns ``person`` (who wrote it, or whoever the plan
is to protect), ``text`` (subject and body) and ``spam`` (0 or 1); one row per mail, at most
``MAX_ROWS`` of one person. Only the LoRA weights and the head travel
(:mod:`fedflow.workloads.encoder`); a text becomes ``TOKENS`` numbers of the encoder's vocabulary
when it is loaded. Needs ``pip install fedflow[text]``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedflow.learning.table import Table
from fedflow.learning.workload import PersonData, group_by_person
from fedflow.workloads import encoder

TOKENS = 128  #: of a mail; what is longer is cut
MAX_ROWS = 64
LAYERS = 1  #: how many of the six layers have LoRA
#: Characters of a mail that are looked at: enough for all tokens.
_CHARACTERS = 16 * TOKENS


class Mails:
    """The workload ``mails``."""

    name = "mails"
    unit_column = "person"
    reference_persons = 550
    score_range = (0.0, 1.0)
    vocabulary = encoder.VOCABULARY

    def build_model(self) -> torch.nn.Module:
        """MiniLM with LoRA in its last layer; Refusal ``missing-extra`` without fedflow[text]."""
        return encoder.adapted_encoder(LAYERS)

    def load(self, path: str | Path) -> PersonData:
        """One site's mails; InputError for a file or row that cannot be used."""
        table = Table(path, [self.unit_column, "text", "spam"])
        labels = table.numbers("spam", choices=(0.0, 1.0)).astype(np.float32)
        return group_by_person(
            token_ids(table.identifiers("text")),
            labels,
            table.identifiers(self.unit_column),
            dataset=self.name,
            max_rows=MAX_ROWS,
            where=table.where,
        )

    def loss(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats per mail."""
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")


workload = Mails()


def token_ids(texts: Sequence[str]) -> NDArray[np.float32]:
    """float32[N, TOKENS]: each text between the encoder's two marks, cut, then padded with 0."""
    out = np.full((len(texts), TOKENS), encoder.PAD, np.float32)
    for row, text in zip(out, texts, strict=True):
        ids = _tokenizer().encode(text[:_CHARACTERS], add_special_tokens=False).ids[: TOKENS - 2]
        row[: len(ids) + 2] = [encoder.CLS, *ids, encoder.SEP]
    return out


@functools.cache
def _tokenizer() -> Any:
    folder = encoder.encoder_folder()
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_padding()
    made.no_truncation()
    return made
