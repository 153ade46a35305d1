"""The workloads of fedflow: read, clipped, and better than chance after private steps."""

import csv

import numpy as np
import pytest
import torch
from plans import SUMMED, make_plan
from safetensors.numpy import save_file

from fedflow.crypto.csprng import Csprng
from fedflow.errors import InputError, Misuse
from fedflow.learning import randhie
from fedflow.learning.batches import unit_losses
from fedflow.learning.clipping import Clipper
from fedflow.learning.evaluation import exact_score
from fedflow.learning.model_file import flatten
from fedflow.learning.plan import load_plan
from fedflow.learning.public_weights import public_model
from fedflow.learning.workload import Persons, initial_model, model_with
from fedflow.simulation.federation import Federation
from fedflow.workloads import housing, image, shakespeare, svm, two_input

SITES = ("a", "b", "c", "d")


def uniform(label, *shape):
    csprng = Csprng.from_seed(label.encode().ljust(32, b"."))
    return csprng.uniform(int(np.prod(shape))).reshape(shape)


def write_images(folder, site):
    """Bright left halves are class 0, bright right halves class 1."""
    labels = (np.arange(80) % 2).astype(np.int64)
    images = (60 * uniform(f"image {site}", 80, 28, 28)).astype(np.uint8)
    for row, label in enumerate(labels):
        images[row, :, 14 * label : 14 * label + 14] += 150
    path = folder / f"{site}.safetensors"
    save_file({"images": images, "labels": labels}, path)
    return path


def write_roles(folder, site):
    """Roles that say nothing but "to be or not": the next letter follows from the last few."""
    lines = [f"{site}/{role}\t{'to be or not ' * 20}\n" for role in range(40)]
    (folder / f"{site}.txt").write_text("".join(lines))
    return folder / f"{site}.txt"


def write_homes(folder, site, rows=100):
    path, drawn = folder / f"{site}.csv", uniform(f"home {site}", rows, len(housing.COLUMNS))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tract", "medv", *housing.COLUMNS])
        for row, some in enumerate(2.0 * drawn - 1.0):
            centres = zip(some, housing.COLUMNS.values(), strict=True)
            cells = [centre + scale * each for each, (centre, scale) in centres]
            writer.writerow([f"{site}{row}", 25 + 15 * some[5] - 8 * some[12], *cells])
    return path


def write_two(folder, site):
    (folder / f"{site}.csv").write_bytes(two_input.site_table(site))
    return folder / f"{site}.csv"


def write_visits(folder, site):
    parts = randhie.partition_sites(randhie.vendored_table())
    (folder / f"{site}.csv").write_bytes(parts[str(1 + SITES.index(site))])
    return folder / f"{site}.csv"


#: Workload, what writes a site's file, and what a short federation does: its plan, chance, target.
CASES = {
    "image": (image.workload, write_images, 8, 0.1, "accuracy", 0.1, 0.9),
    "shakespeare": (shakespeare.workload, write_roles, 8, 0.2, "accuracy", 0.2, 0.4),
    "housing": (housing.workload, write_homes, 15, 0.3, "mse", 0.12, 0.06),
    "svm": (svm.workload, write_visits, 15, 0.5, "auc", 0.5, 0.62),
    "two-input": (two_input.workload, write_two, 40, 1.0, "accuracy", 0.55, 0.8),
}


def run(name, folder, monkeypatch):
    workload, write, rounds, rate, metric, *_ = CASES[name]
    sites = [workload.load(write(folder, site)) for site in SITES]
    fields = {"metric": metric, "bins": 10 if metric == "auc" else None}
    plan = make_plan(
        **SUMMED,
        plan__workload=name,
        cohort__minimum=3,
        strategy__server_learning_rate=rate,
        strategy__server_momentum=0.9,
        privacy__clipping_norm=1.0,
        privacy__noise_multiplier=1.0,
        privacy__sample_rate=min(1.0, max(0.25, 40 / len(sites[0].train))),
        evaluation__error_bound=1.0 if metric == "mse" else None,
        secure_aggregation__value_range="auto",
        **{f"evaluation__{field}": value for field, value in fields.items()},
    )
    # The divisor that fits a test's small sites; a workload's own is for typical ones.
    monkeypatch.setattr(workload, "reference_persons", len(sites[0].train))
    federation = Federation(workload, sites, plan, Csprng.from_seed(bytes(32)))
    held = Persons.join([site.holdout for site in sites])

    def loss():
        weights = held.mask / np.maximum(held.mask.sum(axis=1, keepdims=True), 1)
        batch = map(torch.from_numpy, (held.x, held.y, weights.astype(np.float32)))
        with torch.no_grad():
            model = model_with(workload, federation.model())
            return float(unit_losses(workload, model, tuple(batch)).mean())

    before = loss()
    for _ in range(rounds):
        federation.round()
    return before, loss(), exact_score(workload, held, federation.model(), plan)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_workload_learns_in_a_few_private_steps(name, tmp_path, monkeypatch):
    *_, metric, chance, target = CASES[name]
    before, after, score = run(name, tmp_path, monkeypatch)
    assert after < before
    assert score < target if metric == "mse" else score > max(target, chance)


@pytest.mark.parametrize("name", CASES)
def test_each_model_is_clipped_unit_by_unit_and_drawn_without_torch(name, tmp_path):
    workload, write, *_ = CASES[name]
    units = workload.load(write(tmp_path, "a")).train
    before = torch.get_rng_state()
    model = workload.build_model()
    assert torch.equal(before, torch.get_rng_state())
    clipper = Clipper(workload, model, clipping_norm=0.5, max_physical_batch=2)
    weights = units.mask / units.mask.sum(axis=1, keepdims=True)
    x, y, w = (torch.from_numpy(a[:3].astype(np.float32)) for a in (units.x, units.y, weights))
    together = clipper.clipped_sum(x, y, w)
    alone = sum(clipper.clipped_sum(x[i : i + 1], y[i : i + 1], w[i : i + 1]) for i in range(3))
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.norm() <= 3 * 0.5 + 1e-4
    again = flatten(initial_model(workload))
    assert np.array_equal(flatten(initial_model(workload)), again)
    assert clipper.dimension == again.size


@pytest.mark.parametrize("branch", [slice(0, 2), slice(2, None)], ids=["table", "signal"])
def test_two_inputs_are_both_needed(branch, tmp_path):
    data = two_input.workload.load(write_two(tmp_path, "a")).train
    x, y = data.x[:, 0], data.y[:, 0]
    one = x[:, 0] if branch.start == 0 else x[:, 2:].sum(axis=1)
    both = x[:, 0] + x[:, 2:].sum(axis=1) / 9.0  # a bump's samples add up to nine heights
    assert ((one > 0) == y).mean() < 0.85 < ((both > 0) == y).mean()


def test_a_character_is_told_from_those_before_it_only():
    model = shakespeare.workload.build_model()
    x = (torch.arange(80.0) % 70).view(1, 1, 80)
    changed = x.clone()
    changed[0, 0, 40] = 3.0
    with torch.no_grad():
        different = (model(x) != model(changed)).any(dim=-1)[0, 0]
    assert different.nonzero().flatten().tolist() == list(range(40, 55))


def test_windows_of_a_text_follow_one_another():
    text = "".join(shakespeare.ALPHABET[i % 70] for i in range(250))
    found = shakespeare.windows(text)
    assert len(found) == 3
    assert found[0][-1] == found[1][0]
    assert [len(window) for window in found] == [81, 81, 81]
    assert len(shakespeare.windows(text[:241])) == 3
    assert len(shakespeare.windows(text[:240])) == 2


def test_weights_follow_from_the_seed_and_the_fan_in():
    def build():
        return torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.GroupNorm(2, 4))

    first, second, other = public_model(build), public_model(build), public_model(build, seed=1)
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    bound = 1 / np.sqrt(6)
    assert 0.6 * bound < first[0].weight.abs().max() <= bound
    assert first[0].bias.abs().max() <= bound
    assert first[1].weight.tolist() == [1.0] * 4
    assert first[1].bias.tolist() == [0.0] * 4
    with pytest.raises(Misuse, match="buffers"):
        public_model(lambda: torch.nn.BatchNorm1d(3))


@pytest.mark.parametrize("name", [*CASES, "mails"])
def test_the_example_plan_is_for_the_workload(name, request):
    plan = load_plan(request.config.rootpath / "flows" / "plans" / f"{name}.toml")
    assert plan.plan.workload == name


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"labels": np.zeros(2, np.int64)}, "tensor images: is missing"),
        ({"images": np.zeros((2, 28, 27), np.uint8)}, r"tensor images: is uint8\[2, 28, 27\]"),
        ({"images": np.zeros((2, 28, 28), np.float32)}, "tensor images: is float32"),
        ({"labels": np.zeros(3, np.int64)}, r"tensor labels: is int64\[3\]"),
        ({"labels": np.array([3, 10])}, "row 1: tensor labels: label 10 is no class"),
        ({"ids": np.zeros(2, np.int32)}, "tensor ids: is int32"),
        ({"labels": np.array([3, 3])}, "every row has label 3"),
    ],
)
def test_unusable_images_are_named(tensors, message, tmp_path):
    good = {"images": np.zeros((2, 28, 28), np.uint8), "labels": np.array([0, 1])}
    given = tensors if set(tensors) == {"labels"} and "missing" in message else good | tensors
    save_file(given, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=message):
        image.workload.load(tmp_path / "a.safetensors")


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    import pickle

    (tmp_path / "a.safetensors").write_bytes(pickle.dumps({"images": [1]}))
    with pytest.raises(InputError, match="not a safetensors file"):
        image.workload.load(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        image.workload.load(tmp_path / "none.safetensors")


def test_images_of_one_person_are_one_unit(tmp_path):
    images = np.arange(4 * 784, dtype=np.int64).reshape(4, 28, 28).astype(np.uint8)
    tensors = {"images": images, "labels": np.array([0, 1, 2, 3]), "ids": np.array([7, 8, 7, 9])}
    save_file(tensors, tmp_path / "a.safetensors")
    data = image.workload.load(tmp_path / "a.safetensors")
    everybody = Persons.join([data.train, data.holdout])
    seven = everybody.ids.index("7")
    assert everybody.y[seven][:3].tolist() == [0.0, 2.0, 0.0]
    assert np.array_equal(everybody.x[seven, 1], images[2].ravel() / np.float32(255))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ROMEO\tBut soft\nJULIET Ay me\n", r"a.txt:2: column speech: there is no tab"),
        ("\tBut soft\n", r"a.txt:1: column role: is empty"),
        ("ROMEO\t \n", r"a.txt:1: column speech: is empty"),
        ("\n\n", "has no rows"),
        ("ROMEO\tBut soft\n", "no role says 81 characters"),
    ],
)
def test_unusable_speeches_are_named(text, message, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        shakespeare.workload.load(tmp_path / "a.txt")


def test_unusable_cells_are_named(tmp_path):
    path = write_homes(tmp_path, "a")
    lines = path.read_text().split("\n")
    lines[1] = ",".join(["a0", "much", *lines[1].split(",")[2:]])
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"a\.csv:2: column medv: 'much' is not a number"):
        housing.workload.load(path)
    path = write_two(tmp_path, "b")
    path.write_text(path.read_text().replace("s31", "s32", 1))
    with pytest.raises(InputError, match=r"b\.csv:1: column s31 is missing"):
        two_input.workload.load(path)


def test_the_hinge_loss_asks_for_a_margin_of_one():
    scores, y = torch.tensor([[2.0, 0.5, -0.5, -2.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert svm.workload.loss(scores, y).tolist() == [[0.0, 0.5, 1.5, 0.0]]


def test_a_margin_is_judged_on_the_persons_that_the_demo_holds_out(tmp_path):
    path = write_visits(tmp_path, "a")
    assert svm.workload.load(path).holdout.ids == randhie.workload.load(path).holdout.ids
