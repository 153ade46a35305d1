"""A new workload from its first file to its first score, and what is refused on the way."""

import importlib
import subprocess
import sys
import tomllib

import pytest
import torch

from fedflow.cli.main import main
from fedflow.learning import randhie, randhie_mlp
from fedflow.learning import workload as workload_module
from fedflow.learning.plan import load_plan


class Entry:
    def __init__(self, name, found):
        self.name, self.found = name, found

    def load(self):
        return self.found


class Entries(list):
    @property
    def names(self):
        return {entry.name for entry in self}


@pytest.fixture
def fedflow(monkeypatch, capsys):
    """Runs a command; gives its exit status and what it printed, in one line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return end.value.code, " ".join((printed.out + printed.err).split())

    return run


@pytest.fixture
def made(tmp_path, monkeypatch, fedflow):
    """A new package, and its workload as if it were installed."""
    monkeypatch.chdir(tmp_path)
    status, _ = fedflow("workload", "new", "sepsis-risk")
    assert status == 0
    folder = tmp_path / "sepsis-risk"
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("sepsis_risk", None)
    sys.modules.pop("sepsis_risk.workload", None)
    module = importlib.import_module("sepsis_risk.workload")
    entries = Entries([Entry("sepsis-risk", module.workload)])
    monkeypatch.setattr(workload_module.metadata, "entry_points", lambda group: entries)
    return folder, module


def test_a_new_package_names_its_workload_where_fedflow_looks(made):
    folder, _ = made
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["fedflow.workloads"]
    assert points == {"sepsis-risk": "sepsis_risk.workload:workload"}
    assert load_plan(folder / "plan.toml").plan.workload == "sepsis-risk"
    assert "$" not in "".join(path.read_text() for path in folder.rglob("*.*") if path.is_file())


@pytest.mark.slow
def test_a_new_package_passes_its_own_tests(made):
    folder, _ = made
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    ended = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
        env={"PYTHONPATH": ":".join([str(folder), *sys.path]), "PATH": ""},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 passed" in ended.stdout


def test_a_new_workload_is_tried_as_it_is(made, fedflow):
    folder, _ = made
    files = sorted(folder.glob("example/*.csv"))
    status, text = fedflow(
        "workload", "try", "sepsis-risk", *files, "--plan", folder / "plan.toml", "--rounds", 10
    )
    assert status == 0
    assert "4 sites; the first model: accuracy" in text
    score = float(text.rpartition("round 10 of 10: accuracy ")[2].split()[0])
    assert score > 0.75


def test_one_file_is_dealt_to_made_up_sites(made, fedflow):
    folder, _ = made
    some = ("--plan", folder / "plan.toml", "--rounds", 1, "--plain")
    first = folder / "example" / "site-1.csv"
    status, text = fedflow("workload", "try", "sepsis-risk", first, *some, "--sites", 4)
    assert status == 0
    assert "4 sites" in text
    status, text = fedflow("workload", "try", "sepsis-risk", first, *some)
    assert status == 2
    assert "the plan opens no sum below 3" in text
    status, text = fedflow("workload", "try", "sepsis-risk", first, first, *some, "--sites", 4)
    assert status == 2
    assert "goes with one data file" in text


def test_a_plan_for_another_workload_is_refused(made, fedflow, request):
    folder, _ = made
    other = request.config.rootpath / "flows" / "plans" / "trivial.toml"
    first = folder / "example" / "site-1.csv"
    status, text = fedflow("workload", "try", "sepsis-risk", first, "--plan", other)
    assert status == 2
    assert "for workload 'trivial', not 'sepsis-risk'" in text


def test_a_check_prints_shapes_and_the_method_and_no_value(made, fedflow):
    folder, _ = made
    path = folder / "example" / "site-1.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *lines, "zebra-77,1,41.625,118.875"]) + "\n")
    status, text = fedflow("workload", "check", "sepsis-risk", "--data", path)
    assert status == 0
    assert "5 rows at most of 2 features" in text
    assert "33 parameters are trained and travel" in text
    assert "gradients by ghost" in text
    assert not any(value in text for value in ("zebra", "41.6", "118.8"))


def test_a_check_refuses_a_model_that_mixes_persons(made, fedflow, monkeypatch):
    folder, module = made

    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2, affine=False, track_running_stats=False)
            self.line = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1)
            torch.nn.init.zeros_(self.line.weight)
            torch.nn.init.zeros_(self.line.bias)

        def forward(self, x):
            return self.line(self.norm(x.flatten(0, 1)).view(x.shape)).squeeze(-1)

    monkeypatch.setattr(module.workload, "build_model", Mixing, raising=False)
    path = folder / "example" / "site-1.csv"
    status, text = fedflow("workload", "check", "sepsis-risk", "--data", path)
    assert status == 2
    assert "use GroupNorm instead of BatchNorm1d" in text


def test_a_check_names_the_row_that_cannot_be_used(made, fedflow):
    folder, _ = made
    path = folder / "example" / "site-1.csv"
    path.write_text(path.read_text().replace("\n", "\nx,2,30,100\n", 1))
    status, text = fedflow("workload", "check", "sepsis-risk", "--data", path)
    assert status == 2
    assert "site-1.csv:2: column label: '2' cannot be used" in text
    status, text = fedflow("workload", "check", "sepsis-risk", "--data", path, "--unit", "site")
    assert status == 2
    assert "allowed: person, record" in text


def test_a_name_that_cannot_be_used_or_is_taken_writes_nothing(made, fedflow, tmp_path):
    for name in ("Sepsis", "two words", "9lives", "class", "a--b"):
        status, text = fedflow("workload", "new", name)
        assert status == 2
        assert "cannot be used" in text
    status, text = fedflow("workload", "new", "sepsis-risk", "--folder", tmp_path / "other")
    assert status == 2
    assert "installed already" in text
    (tmp_path / "asthma").mkdir()
    status, text = fedflow("workload", "new", "asthma")
    assert status == 2
    assert "is here already" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asthma", "sepsis-risk"]


def test_an_example_of_data_that_are_elsewhere_says_where(fedflow, tmp_path):
    out = tmp_path / "rows"
    status, text = fedflow("workload", "example", "shakespeare", "-o", out)
    assert status == 2
    assert "python -m benchmarks.data.sites shakespeare FOLDER" in text
    status, _ = fedflow("workload", "example", "two-input", "--site", "a", "-o", out)
    assert status == 0
    assert out.read_bytes().startswith(b"person,label,a,b,s0,")
    plan = tmp_path / "plan.toml"
    status, _ = fedflow("workload", "example", "mails", "--plan", plan)
    assert status == 0
    assert load_plan(plan).plan.workload == "mails"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("local-layers", "round 1 of 1: AUC 0."),  # a site's own layers judge its own persons
        ("histogram", "round 1 of 1: done quantiles"),
        ("prototypes", "prototypes"),
    ],
)
def test_plans_of_every_kind_are_tried(fedflow, request, tmp_path, monkeypatch, name, says):
    found = [randhie.workload, randhie_mlp.workload]
    entries = Entries([Entry(one.name, one) for one in found])
    monkeypatch.setattr(workload_module.metadata, "entry_points", lambda group: entries)
    files = []
    for label, table in randhie.partition_sites(randhie.vendored_table()).items():
        files.append(tmp_path / f"{label}.csv")
        files[-1].write_bytes(b"".join(table.splitlines(keepends=True)[:200]))
    path = request.config.rootpath / "flows" / "plans" / f"{name}.toml"
    workload = load_plan(path).plan.workload
    status, text = fedflow("workload", "try", workload, *files, "--plan", path, "--rounds", 1)
    assert status == 0, text
    assert says in text
    assert "…" not in text, "no number is cut short where the terminal is narrow"
