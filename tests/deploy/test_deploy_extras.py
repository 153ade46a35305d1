"""Each role works with its own extra and nothing more; what is missing is named in one sentence."""

from __future__ import annotations

import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from deploy_roles import (
    ALL,
    PLOTS,
    RELAY,
    SITE,
    STORES,
    TOOLS,
    WORKER,
    imports_without,
    module_without,
    without,
)

from fedflow import extras
from fedflow.errors import Refusal
from fedflow.privacy.ledger import Ledger
from fedflow.site.config import init_site, open_site

ROOT = Path(__file__).parents[2]


def test_without_any_extra_a_site_is_made_read_and_audited(tmp_path):
    site = str(tmp_path / "site")
    commands = [
        ["--help"],
        ["--version"],
        ["site", "init", site, "--label", "berlin", "--exchange", str(tmp_path / "exchange")],
        ["site", "status", site],
        ["site", "status", site, "--json"],
        ["ledger", "show", site],
        ["audit", "verify", str(tmp_path)],  # nothing to audit: says so, status 2
        ["site", "start", site, "--no-prefect"],
        ["demo"],
    ]
    *fine, audit, start, demo = without(ALL, *commands)
    for command, (status, out, err) in zip(commands, fine, strict=False):
        assert status == 0, (command, err)
        assert out
        assert "Traceback" not in err
    assert audit[0] == 2
    assert "there is no exchange/jobs below it" in audit[2]
    for extra, (status, _, err) in (("site", start), ("coordinator", demo)):
        assert status == 2
        assert err.strip() == f"fedflow: refused: {extras.sentence(extra)}"


def test_plots_need_the_coordinator_extra_and_tables_do_not(tmp_path):
    folder = tmp_path / "site"
    init_site(folder, label="berlin", exchange=str(tmp_path / "exchange"))
    site = open_site(folder)
    ledger = Ledger.open(site.ledger_path, site.identity)
    ledger.open_account("visits/train", epsilon=3.0, delta=1e-5, order=8.0)
    ledger.close()
    page = tmp_path / "budget.html"
    plain, paged = without(
        ALL - SITE,
        ["site", "status", str(folder)],
        ["site", "status", str(folder), "--html", str(page)],
    )
    assert plain[0] == 0, plain
    assert "visits/train" in plain[1]
    assert paged[0] == 2
    assert paged[2].strip() == f"fedflow: refused: {extras.sentence('coordinator')}"
    assert not page.exists()


@pytest.mark.parametrize(
    ("packages", "modules"),
    [
        (ALL, ["fedflow.site.agent", "fedflow.audit.verify", "fedflow.exchange.relay"]),
        (ALL - SITE - TOOLS, ["fedflow.site.trainer", "fedflow.learning.contribution"]),
        (SITE | PLOTS | STORES | TOOLS, ["fedflow.orchestration.worker"]),
        (RELAY - {"fastapi", "uvicorn", "starlette"} | STORES | TOOLS, ["flows.training"]),
    ],
    ids=["site daemon", "training process", "worker", "coordinator"],
)
def test_a_role_imports_nothing_that_its_extra_does_not_bring(packages, modules):
    assert imports_without(packages, *modules) == ""


def test_the_import_of_another_roles_package_would_be_seen():
    assert "No module named 'torch'" in imports_without(SITE, "fedflow.learning.batches")
    assert "needs fedflow[coordinator]" in imports_without(WORKER, "flows.training")


def test_an_extra_that_is_missing_is_refused_and_one_that_is_here_is_not(monkeypatch):
    extras.need("coordinator")
    monkeypatch.setitem(extras._PACKAGES, "relay", ("fastapi", "a_package_nobody_has"))
    with pytest.raises(
        Refusal, match=r"^this needs fedflow\[relay\]: pip install 'fedflow\[relay"
    ) as no:
        extras.need("relay")
    assert no.value.code == "missing-extra"


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("torch", "site"),
        ("opacus.validators", "site"),
        ("prefect.states", "worker"),
        ("plotly", "coordinator"),
        ("uvicorn", "relay"),
        ("s3fs", "s3"),
        ("prefect_redis", "redis"),
        ("dask", "dask"),
    ],
)
def test_the_smallest_extra_that_brings_a_package_is_named(package, extra):
    found = extras.explain(ModuleNotFoundError("no", name=package))
    assert found == f"this needs fedflow[{extra}]: pip install 'fedflow[{extra}]'"


def test_a_module_that_no_extra_brings_is_a_bug_and_stays_one():
    assert extras.explain(ModuleNotFoundError("no", name="fedflow.nothing")) is None
    assert extras.explain(ModuleNotFoundError("no")) is None


def test_the_named_packages_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["optional-dependencies"]
    assert set(extras._PACKAGES) | {"all", "docs", "dev"} >= set(listed)
    for extra, packages in extras._PACKAGES.items():
        wanted = " ".join(
            listed[extra] + (listed["site"] + listed["worker"] if extra == "coordinator" else [])
        ).replace("-", "_")
        for package in packages:
            if package not in ("dask", "distributed"):  # come with prefect-dask
                assert package in wanted
            if extra != "text":  # large, and not needed by anything here
                assert find_spec(package) is not None


@pytest.mark.parametrize("missing", [WORKER, PLOTS, SITE])
def test_a_flow_started_without_its_extra_ends_with_a_sentence(missing):
    status, out, err = module_without(missing, "flows.training", "job", "--coordinator", ".")
    assert status == 2
    assert out == ""
    assert err.strip() == f"fedflow: refused: {extras.sentence('coordinator')}"
    # who imports a flow is told by an error it can handle, as of any missing extra
    assert "fedflow.errors.Refusal" in imports_without(missing, "flows.scheduled")
