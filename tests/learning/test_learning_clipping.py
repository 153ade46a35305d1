"""The clipped sum against a loop over units and against Opacus, and units and models that break."""

import copy
import warnings

import numpy as np
import pytest
import torch
from clipping_models import (
    FEATURES,
    MODELS,
    Rows,
    Task,
    convolution,
    custom,
    frozen,
    logistic,
    oracle,
    perceptron,
    tied,
    units,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from learning_fixtures import plan_with, site_rows, write_csv
from opacus.grad_sample import GradSampleModule
from opacus.layers import DPLSTM
from opacus.optimizers import DPOptimizer
from torch import nn

from fedflow.errors import Misuse, Refusal
from fedflow.learning import unit_check
from fedflow.learning import workload as workload_module
from fedflow.learning.batches import unit_losses
from fedflow.learning.clipping import Clipper, check_model
from fedflow.learning.model_file import flatten
from fedflow.learning.randhie import RandHie
from fedflow.learning.randhie import workload as randhie
from fedflow.learning.workload import model_with
from fedflow.site.trainer import perform

ONE_ROW = (logistic, perceptron, convolution)


def clipper(build, norm=0.5, method="auto", largest=512, loss=None):
    task = Task(build, loss)
    return Clipper(task, build(), clipping_norm=norm, max_physical_batch=largest, method=method)


def clipped_sum(build, batch, **options):
    return clipper(build, **options).clipped_sum(*batch)


def picked(batch, keep):
    return tuple(t[torch.tensor(list(keep), dtype=torch.long)] for t in batch)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("norm", [0.3, 1e4])
def test_is_the_sum_of_a_loop_over_units(build, rows, norm):
    batch = units(9, rows)
    expected, terms = oracle(Task(build), build(), batch, norm)
    found = clipped_sum(build, batch, norm=norm)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(terms.norm()))


@pytest.mark.parametrize("build", [b for b in MODELS if b not in (custom, tied)])
def test_hooks_and_ghost_agree(build):
    batch = units(40, 1)
    ghost, hooks = (clipped_sum(build, batch, method=m) for m in ("ghost", "hooks"))
    assert (ghost - hooks).abs().max() <= 1e-6 * max(1.0, float(hooks.abs().max()))


def test_auto_takes_ghost_where_it_is_right_and_hooks_elsewhere():
    for build in MODELS:
        engine = clipper(build)
        assert engine.method is None
        engine.clipped_sum(*units(0))
        assert engine.method == ("hooks" if build in (custom, tied) else "ghost")
    with pytest.raises(Misuse, match="cannot be clipped by ghost"):
        clipped_sum(tied, units(2), method="ghost")


def test_recurrent_layers_of_opacus():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = DPLSTM(6, 5, batch_first=True)
            self.head = nn.Linear(5, 1)

        def forward(self, x):
            return self.head(self.lstm(x.reshape(-1, 6, 6))[0][:, -1]).reshape(x.shape[:2])

    torch.manual_seed(0)
    start = Recurrent().state_dict()

    def build():
        model = Recurrent()
        model.load_state_dict(start)
        return model

    batch = units(5, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, _ = oracle(Task(build), build(), batch, 0.2)
        found = clipped_sum(build, batch, norm=0.2)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["hooks", "ghost"])
@pytest.mark.parametrize("norm", [0.05, 0.7, 100.0])
def test_clips_as_opacus_own_optimizer(method, norm):
    batch = units(30, 1, scale=3.0)
    model = convolution()
    model.inner[2].inplace = False  # their hooks cannot
    theirs = GradSampleModule(model, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(theirs.parameters(), 1.0),
        noise_multiplier=0.0,
        max_grad_norm=norm,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unit_losses(Task(convolution), theirs, batch).sum().backward()
    optimizer.clip_and_accumulate()
    named = sorted(convolution().named_parameters())
    summed = {n: p.summed_grad for n, p in theirs._module.named_parameters()}
    expected = torch.cat([summed[name].flatten() for name, _ in named])
    found = clipped_sum(convolution, batch, norm=norm, method=method)
    assert torch.allclose(found.float(), expected, rtol=1e-5, atol=1e-6)


def test_order_is_that_of_a_model_file():
    build = perceptron
    engine = clipper(build)
    vector = torch.arange(engine.dimension, dtype=torch.float64)
    engine.set_gradient(vector)
    gradients = {n: p.grad.numpy() for n, p in engine._model.named_parameters()}
    assert np.array_equal(flatten(gradients), vector.float().numpy())


def test_frozen_parameters_are_not_in_the_sum_and_get_no_gradient():
    engine = clipper(frozen)
    total = engine.clipped_sum(*units(6))
    weight = engine._model.inner[0].weight
    assert total.shape == (sum(p.numel() for p in engine._model.parameters()) - weight.numel(),)
    assert total.count_nonzero() > 0
    engine.set_gradient(total)
    assert engine._model.inner[0].weight.grad is None


@pytest.mark.parametrize("method", ["hooks", "ghost"])
def test_an_empty_batch_is_zero(method):
    total = clipped_sum(perceptron, units(0), method=method)
    assert total.shape == (16 * 37 + 17,)
    assert not total.any()


@pytest.mark.parametrize("method", ["hooks", "ghost"])
@pytest.mark.parametrize("largest", [1, 2, 7, 20])
def test_the_size_of_physical_batches_changes_nothing(method, largest):
    batch = units(20)
    whole = clipped_sum(convolution, batch, method=method)
    parts = clipped_sum(convolution, batch, method=method, largest=largest)
    assert torch.allclose(whole, parts, rtol=0, atol=2e-6)


def test_the_model_is_left_as_it_was():
    engine = clipper(convolution)
    before = copy.deepcopy(engine._model.state_dict())
    engine.clipped_sum(*units(4))
    assert all(torch.equal(v, before[n]) for n, v in engine._model.state_dict().items())
    assert all(p.grad is None for p in engine._model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in engine._model.modules())


BROKEN = [np.inf, -np.inf, np.nan, 3e38]


@pytest.mark.parametrize("method", ["hooks", "ghost"])
@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("where", [np.s_[:], np.s_[0]])
@pytest.mark.parametrize("build", ONE_ROW)
def test_a_broken_unit_adds_zero_and_changes_nothing_for_others(build, where, value, method):
    batch = units(12, 1)
    without = clipped_sum(build, picked(batch, range(1, 12)), method=method)
    batch[0][0, 0, where] = float(value)
    found = clipped_sum(build, batch, method=method)
    assert torch.isfinite(found).all()
    if np.isfinite(value):  # adds at most a clipped gradient, if it has one
        assert (found - without).norm() <= 0.5 * (1 + 1e-3)
    else:
        assert torch.allclose(found, without, rtol=0, atol=1e-6)


def test_hooks_and_ghost_agree_where_many_units_are_broken():
    batch = units(30, 1)
    for unit, value in zip(range(0, 30, 3), [np.nan, np.inf, -np.inf] * 4, strict=False):
        batch[0][unit, 0, unit] = float(value)
    sums = [clipped_sum(perceptron, batch, method=m) for m in ("ghost", "hooks")]
    good = clipped_sum(perceptron, picked(batch, [i for i in range(30) if i % 3]))
    assert torch.allclose(*sums, rtol=0, atol=1e-6)
    assert torch.allclose(sums[0], good, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["hooks", "ghost"])
def test_all_units_broken_is_zero(method):
    batch = units(4, 1)
    batch[0][:] = float("nan")
    assert not clipped_sum(perceptron, batch, method=method).any()


@pytest.mark.parametrize("method", ["hooks", "ghost"])
@pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
def test_a_padded_row_is_not_even_looked_at(method, value):
    x, y, weights = units(10)
    padded = weights == 0
    assert padded.any()
    expected = clipped_sum(convolution, (x, y, weights), method=method)
    x, y = x.clone(), y.clone()
    x[padded], y[padded] = float(value), float(value)
    found = clipped_sum(convolution, (x, y, weights), method=method)
    assert torch.equal(found, expected)


def test_one_row_without_a_finite_loss_breaks_its_unit_only():
    def steep(scores, y):
        return torch.exp(200 * scores**2) * (1 + y)

    batch = units(8, 1, scale=0.05)
    batch[0][3] = 9.0  # exp overflows
    for method in ("hooks", "ghost"):
        found = clipped_sum(logistic, batch, loss=steep, method=method)
        keep = [i for i in range(8) if i != 3]
        expected = clipped_sum(logistic, picked(batch, keep), loss=steep, method=method)
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 20),
    rows=st.integers(1, 4),
    scale=st.floats(-6, 6).map(lambda e: 10.0**e),
    norm=st.floats(-3, 3).map(lambda e: 10.0**e),
    which=st.sampled_from(range(len(ONE_ROW))),
    method=st.sampled_from(["hooks", "ghost"]),
    cancel=st.booleans(),
)
@example(0, 1, 2, 1e6, 1e-3, 0, "ghost", True)
@example(0, 1, 2, 1e6, 1e-3, 1, "ghost", True)
@example(0, 20, 1, 1e6, 1e3, 2, "ghost", False)
def test_one_unit_moves_the_sum_by_at_most_the_norm(
    seed, count, rows, scale, norm, which, method, cancel
):
    """Also units with huge rows that nearly cancel, where a norm from Gram matrices fails."""
    build = ONE_ROW[which]
    batch = units(count, rows, seed)
    batch[0][0] *= scale
    if cancel and rows > 1:
        batch[0][0, 1:] = batch[0][0, 0]
        batch[1][0] = torch.arange(rows) % 2
        batch[2][0] = 1 / rows
    engine = clipper(build, norm, method)
    full = engine.clipped_sum(*batch)
    rest = engine.clipped_sum(*picked(batch, range(1, count)))
    assert torch.isfinite(full).all()
    assert (full - rest).norm() <= norm * (1 + 2**-10)


def test_a_norm_from_gram_matrices_would_break_the_bound():
    """Why Opacus' norms for rows of one unit are not used: their rounding exceeds the norm."""
    x = torch.full((1, 2, 8), 1e4) + torch.linspace(0, 1, 8)
    b = torch.tensor([[[1.0], [-1.0]]])
    x[0, 1] *= 1 + 1e-6
    written = torch.einsum("nri,nrj->nij", b, x)
    layer = nn.Linear(8, 1)
    from opacus.grad_sample.linear import compute_linear_norm_sample

    gram = compute_linear_norm_sample(layer, [x], b)[layer.weight]
    ratio = float(written.norm() / gram.clamp(min=1e-9))
    assert not 1 - 2**-10 < ratio < 1 + 2**-10


MIXING = {
    "use GroupNorm instead of BatchNorm2d at 'inner.1'": lambda: Rows(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 1), flat=(1, 6, 6)
    ),
    "GroupNorm instead of BatchNorm2d at 'inner.0'": lambda: Rows(
        nn.BatchNorm2d(1, affine=False), nn.Flatten(), nn.Linear(36, 1), flat=(1, 6, 6)
    ),
    "GroupNorm instead of SyncBatchNorm": lambda: Rows(
        nn.SyncBatchNorm(FEATURES), nn.Linear(FEATURES, 1), flat=(FEATURES,)
    ),
    "track_running_stats=False for InstanceNorm2d at 'inner.0'": lambda: Rows(
        nn.InstanceNorm2d(1, track_running_stats=True),
        nn.Flatten(), nn.Linear(36, 1), flat=(1, 6, 6)
    ),
    "replace LSTM at 'inner.0' by Opacus' DPLSTM": lambda: nn.ModuleDict(
        {"inner": nn.Sequential(nn.LSTM(6, 5))}
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", MIXING)
def test_layers_that_mix_examples_are_refused_with_the_fix(words):
    with pytest.raises(Refusal, match=words) as caught:
        check_model(MIXING[words]())
    assert caught.value.code == "mixes-examples"
    with pytest.raises(Refusal):
        clipper(MIXING[words])


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.1), nn.Dropout2d(), nn.AlphaDropout(), nn.RReLU(), DPLSTM(6, 5, 2, dropout=0.2)],
)
def test_layers_that_draw_from_torch_are_refused(layer):
    model = Rows(nn.Linear(FEATURES, 1))
    model.extra = layer
    with pytest.raises(Refusal, match=rf"remove {type(layer).__name__} at 'extra'") as caught:
        check_model(model)
    assert caught.value.code == "random-layer"


def test_layers_that_do_nothing_of_the_kind_pass():
    check_model(Rows(nn.Dropout(0.0), nn.InstanceNorm1d(3, affine=True), nn.Linear(FEATURES, 1)))
    for build in MODELS:
        check_model(build())


class Centred(nn.Module):
    """Mixes examples in plain code."""

    def forward(self, x):
        return x - x.mean(dim=0)


class Shaken(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.1)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("sum", torch.zeros(()))

    def forward(self, x):
        self.sum += x.detach().sum()
        return x


class Sideways(nn.Module):
    """Hands rows on in another order than units: no way to tell whose gradient is whose."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, 1)

    def forward(self, x):
        return self.layer(x.transpose(0, 1).flatten(0, 1)).reshape(x.shape[1], x.shape[0]).t()


@pytest.mark.parametrize(
    ("layer", "code", "words"),
    [
        (Centred, "mixes-examples", "changes with who else is in the batch"),
        (Counting, "mixes-examples", "changes the buffer 'inner.0.sum'"),
        (Shaken, "random-layer", "draws from torch's generator"),
    ],
)
def test_code_that_mixes_units_is_found_by_trying(layer, code, words):
    engine = clipper(lambda: Rows(layer(), nn.Linear(FEATURES, 1)))
    before = torch.get_rng_state()
    with pytest.raises(Refusal, match=words) as caught:
        engine.clipped_sum(*units(0))
    assert caught.value.code == code
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_reorders_rows_is_refused_where_that_matters():
    with pytest.raises(Refusal) as caught:
        clipped_sum(Sideways, units(5, 3))
    assert caught.value.code == "no-unit-gradient"
    batch = units(5, 1)
    expected, _ = oracle(Task(Sideways), model := Sideways(), batch, 0.5)
    engine = Clipper(Task(Sideways), model, clipping_norm=0.5, max_physical_batch=9)
    assert torch.allclose(engine.clipped_sum(*batch), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unit", ["person", "record", "site"])
def test_a_site_finds_out_before_the_first_round(data, tmp_path, monkeypatch, unit):
    class Mixing(RandHie):
        def build_model(self):
            return nn.Sequential(Centred(), super().build_model())

    changes = {"privacy__mechanism": "site", "privacy__unit": unit} if unit == "site" else {}
    plan = plan_with(**{"privacy__unit": unit, **changes})
    path = write_csv(tmp_path / "data.csv", site_rows())
    request = {
        "task": "check",
        "workload": "randhie",
        "data": str(path),
        "plan": plan.canonical().decode(),
    }
    assert perform(request, b"").vector.size == 0
    monkeypatch.setattr(workload_module, "find_workload", lambda name: Mixing())
    if unit == "site":  # the whole site is the unit: its persons may mix
        assert perform(request, b"").vector.size == 0
        return
    with pytest.raises(Refusal) as caught:
        perform(request, b"")
    assert caught.value.code == "mixes-examples"


def test_a_model_is_tried_once(monkeypatch):
    tried = []
    real = unit_check._try
    monkeypatch.setattr(unit_check, "_usable", {})
    monkeypatch.setattr(unit_check, "_try", lambda *a: tried.append(1) or real(*a))
    for rows in (3, 3, 1):
        clipped_sum(perceptron, units(2, rows))
    assert len(tried) == 2


@pytest.mark.parametrize(("norm", "largest"), [(0, 1), (-1, 1), (np.inf, 1), (np.nan, 1), (1, 0)])
def test_impossible_arguments_are_refused(norm, largest):
    with pytest.raises(Misuse):
        clipper(logistic, norm, largest=largest)


def test_the_packaged_workload_takes_ghost(data):
    arrays = {n: p.detach().numpy() for n, p in randhie.build_model().named_parameters()}
    engine = Clipper(
        randhie, model_with(randhie, arrays), clipping_norm=1.0, max_physical_batch=512
    )
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    mask = torch.from_numpy(data.train.mask).float()
    engine.clipped_sum(x, y, mask / mask.sum(1, keepdim=True))
    assert engine.method == "ghost"
