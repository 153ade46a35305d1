"""`python -m benchmarks.utility`: that the compared methods differ in their noise and nothing else.

All on tiny synthetic data; what needs fetched data is skipped where they were not fetched.
"""

import functools
import io
import json
import math
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.data import fetch, scattering
from benchmarks.data.boston import COLUMNS, load_boston
from benchmarks.data.mnist import _idx, load_mnist
from benchmarks.figures import Row
from benchmarks.utility import __main__ as command
from benchmarks.utility import anchors, effect, grid, plot, rates, training
from benchmarks.utility.report import Amount, interval
from benchmarks.utility.settings import Setting, deal, rand_hie, shuffled, validating
from benchmarks.utility.workloads import Cnn, Linear, Regression, points, rows
from fedflow.crypto.csprng import Csprng
from fedflow.learning.clipping import Clipper
from fedflow.learning.model_file import flatten
from fedflow.learning.workload import Persons, Workload, initial_model
from fedflow.privacy.accounting import epsilon_pld
from fedflow.privacy.events import ReleaseEvent

FIXED_NAMES = {
    "m2_minus_central_eps1_n20": ">= -3",
    "m2_minus_central_eps8_n20": ">= -1",
    "m2_minus_m1_eps1_n20": ">= 10",
    "mnist_eps3_cnn": ">= 98.0",
    "mnist_eps3_scattering": ">= 98.5",
    "randhie_gain_eps3": "> 0",
    "secagg_effect": "<= 0.1",
}
FEATURES = 40


def synthetic(units=240, sites=6, seed=0):
    """Ten classes that a linear model can tell apart."""
    generator = Csprng.from_seed(seed.to_bytes(32, "big"))
    y = generator.uint64(units) % 10
    centres = Csprng.from_seed(bytes(32)).uniform(10 * FEATURES).reshape(10, FEATURES)
    noise = generator.uniform(units * FEATURES).reshape(units, FEATURES)
    x = (centres[y.astype(int)] + 0.1 * noise).astype(np.float32)
    return Setting(
        name="synthetic",
        workload=functools.partial(Linear, "synthetic", inputs=FEATURES),
        sites=deal(rows(x, y), sites),
        test=rows(x, y),
        score="accuracy",
        unit="record",
        delta=1e-5,
        minimum=5,
        colluders=1,
        sample_rate=1.0,
        rounds=4,
        clipping_norm=0.5,
    )


def models(setting, noise, rate=1.0):
    """The flat model of every private method."""
    plan = training.plan_of(setting, "central", noise, rate)
    pooled = Persons.join(setting.sites)
    csprng = training.generator("test")
    central = training._trained(setting, pooled, plan, csprng, training.train_private, 1)[-1]
    served = {
        method: training.federation(setting, method, noise, rate, csprng).model()
        for method in ("m2", "m1")
    }
    return {name: flatten(model) for name, model in ({"central": central} | served).items()}


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_without_noise_the_private_methods_are_one(momentum):
    # everybody in every batch and next to no noise: clipping, divisors and steps are left
    found = models(replace(synthetic(), server_momentum=momentum), 0.01)
    size = np.abs(found["central"]).max()
    assert size > 0.02
    for method in ("m2", "m1"):
        assert np.abs(found[method] - found["central"]).max() < 0.02 * size


def test_noise_of_each_method_is_what_its_row_says():
    setting = replace(synthetic(), workload=functools.partial(Linear, "wide", inputs=FEATURES))
    setting = replace(setting, rounds=40, clipping_norm=1e-6)
    noise = 50.0
    for method, found in models(setting, noise).items():
        expected = noise * 1e-6 / setting.units * rates.noise_factor(setting, method)
        expected *= math.sqrt(setting.rounds)
        # 410 coordinates: the estimate's relative deviation is 3.5 %
        assert found.std() == pytest.approx(expected, rel=0.2), method


def test_noise_multiplier_spends_epsilon_and_no_more():
    noise = training.noise_multiplier(1.0, 1e-5, 0.05, 200, "record")
    spent = epsilon_pld([ReleaseEvent("poisson-gaussian", 0.05, noise, 200, "record")], 1e-5)
    assert 0.99 < spent <= 1.0
    less = round(noise * 0.98, 3)
    assert epsilon_pld([ReleaseEvent("poisson-gaussian", 0.05, less, 200, "record")], 1e-5) > 1.0


@pytest.mark.parametrize("method", training.METHODS)
def test_every_method_learns(method):
    setting = replace(synthetic(), rounds=20, sample_rate=0.5)
    score = training.train(setting, method, 0.05, 4.0, 0)
    assert 60.0 < score <= 100.0
    assert training.train(setting, method, 0.05, 4.0, 0) == score


def test_secure_aggregation_changes_nothing_that_shows():
    setting = replace(synthetic(), sample_rate=0.5)
    ranges = []
    made = training.federation(
        setting,
        "m2",
        1.0,
        1.0,
        training.generator("x"),
        secure=True,
        each=lambda federation: ranges.append(federation.value_range),
    )
    used = [made.first_range, *ranges[:-1]]
    with_it = flatten(made.model())
    plain = flatten(effect.without(setting, 1.0, 1.0, training.generator("x"), used))
    other = flatten(effect.without(setting, 1.0, 1.0, training.generator("y"), used))
    moved = np.abs(with_it).max()
    assert np.abs(with_it - plain).max() < 0.01 * moved
    assert np.abs(with_it - other).max() > 0.1 * moved
    assert abs(effect.difference(setting, 1.0, "0")) <= 100 / len(setting.test)


def test_validation_shares_no_unit_with_training():
    setting = rand_hie(0)
    tried = validating(setting)
    trained = {i for site in tried.sites for i in site.ids}
    assert trained
    assert not trained & (set(tried.test.ids) | set(setting.test.ids))
    assert sum(map(len, tried.sites)) + len(tried.test) == setting.units


def test_dealing_loses_nobody():
    persons = rows(np.arange(22, dtype=np.float32).reshape(11, 2), np.arange(11))
    parts = deal(persons.take(shuffled(11, 3)), 4)
    assert sorted(len(part) for part in parts) == [2, 3, 3, 3]
    assert sorted(i for part in parts for i in part.ids) == sorted(persons.ids)


def test_cnn_is_the_published_one_and_can_be_clipped_cheaply():
    workload = Cnn("cnn", 10)
    model = workload.build_model()
    assert sum(p.numel() for p in model.parameters()) == 26_010
    assert isinstance(workload, Workload)
    x, y = torch.rand(3, 1, 784), torch.tensor([[0.0], [4.0], [9.0]])
    clipper = Clipper(workload, model, clipping_norm=0.1, max_physical_batch=2)
    assert clipper.clipped_sum(x, y, torch.ones(3, 1)).norm() <= 0.3
    assert clipper.method == "ghost"
    again, other = initial_model(Cnn("cnn", 10)), initial_model(Cnn("cnn", 10, seed=1))
    assert np.array_equal(flatten(again), flatten(initial_model(workload)))
    assert not np.array_equal(flatten(again), flatten(other))


def test_points_of_a_regression_are_r_squared():
    workload = Regression("line", 10, 1)
    y = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    test = rows(np.stack([y, np.ones(4, np.float32)], axis=1), y)
    arrays = initial_model(workload)
    (name,) = arrays
    assert points(workload, test, {name: np.array([[1.0, 0.0]], np.float32)}) == 100.0
    assert points(workload, test, {name: np.array([[0.0, 1.5]], np.float32)}) == 0.0


def test_wavelets_see_no_brightness_and_the_blur_keeps_it():
    psi, phi = scattering._filters(36)
    assert max(abs(complex(wave[0, 0])) for scale in psi for wave in scale) < 1e-6
    assert abs(complex(phi[0, 0])) == pytest.approx(1.0, abs=1e-3)


def test_scattering_moves_with_the_image():
    image = np.zeros((28, 28), np.uint8)
    image[8:16, 10:14] = 200
    image[8:10, 8:18] = 200
    moved = np.roll(image, 4, axis=1)
    found = scattering.scattering(np.stack([image, moved])).reshape(2, 81, 7, 7)
    assert np.abs(found[1][:, :, 2:6] - found[0][:, :, 1:5]).max() < 0.15
    assert np.abs(found[0]).max() > 2
    assert np.abs(found.reshape(2, scattering.GROUPS, -1).mean(axis=2)).max() < 1e-5
    turned = scattering.scattering(image[None, ::-1, ::-1].copy()).reshape(81, 7, 7)
    assert np.abs(turned - found[0]).max() > 1


def test_idx_files_are_read_by_their_header():
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 4))
    assert _idx(header + bytes(range(24)), 2051)[1, 2, 3] == 23
    with pytest.raises(ValueError, match="idx"):
        _idx(header, 2049)


def archive(folder, content):
    """A package with one file, made by a command, as a registry's client would leave it."""
    path = folder / "made.tgz"
    with tarfile.open(path, "w:gz") as made:
        info = tarfile.TarInfo("package/data/file")
        info.size = len(content)
        made.addfile(info, io.BytesIO(content))
    copy = f"import shutil; shutil.copy({str(path)!r}, 'data-1.tgz')"
    return (sys.executable, "-c", copy)


def test_only_the_expected_file_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "FOLDER", tmp_path / "data")
    files = {"package/data/file": fetch._digest(b"expected")}
    good = fetch.Source("some", archive(tmp_path, b"expected"), "data-*.tgz", files)
    with pytest.raises(fetch.DataMissing, match="make data-some"):
        good.path("file")
    fetch.fetch(good)
    assert good.path("file").read_bytes() == b"expected"
    (good.folder / "file").write_bytes(b"changed since")
    with pytest.raises(fetch.DataMissing, match="not the file"):
        good.path("file")
    bad = fetch.Source("other", archive(tmp_path, b"forged"), "data-*.tgz", files)
    with pytest.raises(fetch.DataMissing, match="not the file"):
        fetch.fetch(bad)
    assert not bad.present


def test_fetching_asks_for_known_names_only(capsys):
    assert fetch.main([]) == 2
    assert fetch.main(["mnist", "else"]) == 2
    assert "mnist|boston" in capsys.readouterr().err


def test_without_data_there_are_no_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "FOLDER", tmp_path)
    assert command.main(["--quick", "--json"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "make data-" in err


def fake_scores(runs, amount):
    at = {"central": 90.0, "m2": 89.0, "m1": 70.0, "alone": 60.0, "none": 95.0}
    return {run: (at[run[1]], at[run[1]] + 1.0) for run in runs}


@pytest.fixture
def small_tasks(monkeypatch):
    tiny = {name: lambda seed, rounds=4: synthetic(seed=seed) for name in grid.TASKS}
    monkeypatch.setattr(grid, "TASKS", tiny)
    monkeypatch.setattr(grid, "noise_of", lambda setting, epsilon: 1.0)


def test_grid_has_every_row_and_every_bar(small_tasks, monkeypatch):
    monkeypatch.setattr(grid, "_scores", fake_scores)
    found = {row.name: row for row in grid.grid_rows(Amount())}
    for name, bar in FIXED_NAMES.items():
        if name in grid.DIFFERENCES:
            assert found[name].bar == bar
            assert found[name].met is (found[name].value >= float(bar.split()[1]))
    assert found["m2_minus_m1_eps1_n20"].value == 19.0
    assert {f"mnist_n100_m1_eps{e:g}" for e in grid.EPSILONS} <= set(found)
    assert {"randhie_alone", "boston_none", "mnist_n20_central_eps0.5"} <= set(found)
    assert all(row.met is None for row in grid.grid_rows(Amount(quick=True)))


def test_all_fixed_names_have_their_bars():
    named = {name: bar for name, (_, _, bar) in grid.DIFFERENCES.items() if bar}
    named |= {f"mnist_eps3_{name}": recipe.bar for name, recipe in anchors.RECIPES.items()}
    assert named | {"secagg_effect": "<= 0.1"} == FIXED_NAMES


def test_every_run_of_the_grid_has_a_tuned_rate():
    for task in grid.TASKS:
        for method in training.METHODS:
            for epsilon in grid.EPSILONS if method in training.PRIVATE else (None,):
                assert rates.rate_of(task, method, epsilon) > 0


def test_effect_reports_the_worst_difference(monkeypatch):
    found = iter([0.01, -0.02, 0.0, 0.03, -0.07, 0.0])
    monkeypatch.setattr(effect, "setting_of", lambda task, seed, amount: synthetic())
    monkeypatch.setattr(effect, "difference", lambda setting, rate, seed: next(found))
    first, *others = effect.effect_rows(Amount(quick=True))
    assert (first.name, first.value, len(others)) == ("secagg_effect", 0.07, 3)


def test_climbing_finds_the_best_rate():
    assert rates._climb(lambda rate: -abs(math.log2(rate) - 5), 1.0) == 32.0
    assert rates._climb(lambda rate: -abs(math.log2(rate) + 4), 1.0) == 2.0**-4


def test_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == "mean 2.00 ± 2.48 (95 % t interval, 3 seeds)"
    assert interval([5.0]) == "one seed"


def test_plot_is_well_formed(small_tasks, monkeypatch):
    monkeypatch.setattr(grid, "_scores", fake_scores)
    tree = ElementTree.fromstring(plot.drawn(list(grid.grid_rows(Amount()))))
    text = " ".join(node.text or "" for node in tree.iter())
    assert all(words in text for words in plot.WORDS.values())
    assert all(task in text for task in grid.TASKS)
    assert ElementTree.fromstring(plot.drawn([Row("other", "x", (1.0,))])) is not None


def test_rates_are_json_that_a_person_can_read():
    found = json.loads(Path(rates.FILE).read_text())
    assert all(rate == 2.0 ** round(math.log2(rate)) for rate in found.values())


@pytest.mark.skipif(not fetch.MNIST.present, reason="needs make data-mnist")
def test_mnist_is_all_there():
    train, test = load_mnist()
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    assert np.bincount(train.labels).tolist()[:2] == [5923, 6742]


@pytest.mark.skipif(not fetch.BOSTON.present, reason="needs make data-boston")
def test_boston_is_scaled_by_public_numbers():
    x, y = load_boston()
    assert x.shape == (506, len(COLUMNS))
    assert np.abs(x).max() <= 3
    assert (y.min(), y.max()) == (-0.8, 1.0)
