"""Every command: help with an example, and errors that say what to do, without a traceback."""

import json
import sqlite3
import subprocess
import sys

import pytest

from fedflow.cli.main import app, main
from fedflow.crypto.identity import Identity
from fedflow.errors import Misuse
from fedflow.privacy.events import ReleaseEvent
from fedflow.privacy.ledger import Ledger
from fedflow.site.policy import template

COMMANDS = [
    ("demo",),
    ("plan", "check"),
    ("plan", "calibrate"),
    ("site", "init"),
    ("site", "start"),
    ("site", "status"),
    ("site", "model"),
    ("site", "overlap", "ask"),
    ("site", "overlap", "answer"),
    ("site", "overlap", "finish"),
    ("site", "overlap", "result"),
    ("site", "request"),
    ("site", "join"),
    ("site", "rotate-key"),
    ("federation", "init"),
    ("federation", "approve"),
    ("federation", "revoke"),
    ("federation", "renew"),
    ("federation", "publish"),
    ("federation", "show"),
    ("coordinator", "init"),
    ("coordinator", "request"),
    ("coordinator", "join"),
    ("job", "create"),
    ("job", "publish"),
    ("job", "list"),
    ("job", "show"),
    ("job", "learned"),
    ("job", "preprocessing"),
    ("ledger", "show"),
    ("ledger", "verify"),
    ("ledger", "export"),
    ("audit", "verify"),
    ("audit", "empirical"),
    ("doctor",),
    ("exchange", "copy"),
    ("exchange", "serve"),
    ("prefect", "automations"),
    ("prefect", "deploy"),
    ("prefect", "status"),
    ("workload", "example"),
    ("workload", "new"),
    ("workload", "check"),
    ("workload", "try"),
]
PLAN = "flows/plans/randhie.toml"


@pytest.fixture
def fedflow(monkeypatch, capsys):
    """Run a command line in this process; (exit status, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedflow", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err + out
        return code, out, err

    return run


@pytest.fixture
def plan(tmp_path, request):
    def write(**changes):
        text = (request.config.rootpath / PLAN).read_text()
        for old, new in changes.items():
            line = next(x for x in text.splitlines() if x.split("=")[0].strip() == old)
            text = text.replace(line, new)
        path = tmp_path / "plan.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def site(tmp_path, fedflow):
    path = tmp_path / "site"
    code, out, _ = fedflow("site", "init", path, "--label", "berlin", "--exchange", tmp_path / "x")
    assert code == 0
    assert "public key" in out
    return path


@pytest.fixture
def spent(site):
    """The site after one release."""
    identity = Identity.load(site / "identity.pem")
    ledger = Ledger.open(site / "ledger.sqlite", identity)
    ledger.open_account("visits/train", epsilon=3.0, delta=1e-5, order=12.0)
    ledger.reserve(
        "visits/train",
        ReleaseEvent("poisson-gaussian", 0.1, 2.0, 8),
        context=b"c" * 32,
        job="job-1",
        manifest=bytes(32),
        round=4,
        attempt=1,
        purpose="train",
        release=b"masked bytes",
    )
    ledger.settle(b"c" * 32, 5)
    ledger.close()
    return site


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(fedflow, command):
    code, out, _ = fedflow(*command, "--help")
    assert code == 0
    assert f"Example: fedflow {' '.join(command)}" in " ".join(out.split())


def commands_of(group, *path):
    for command in group.registered_commands:
        yield (*path, command.name or command.callback.__name__)
    for inner in group.registered_groups:
        yield from commands_of(inner.typer_instance, *path, inner.name)


def test_every_command_is_in_the_list_above():
    assert set(commands_of(app)) == set(COMMANDS)


def test_the_version_and_the_bare_command(fedflow):
    code, out, _ = fedflow("--version")
    assert code == 0
    assert out.startswith("fedflow ")
    _, out, err = fedflow()
    assert "fedflow demo" in out + err


def test_an_unknown_command_is_a_usage_error(fedflow):
    assert fedflow("teleport")[0] == 2


# ---- plan check


def test_a_good_plan_shows_its_cost_and_thresholds(fedflow, plan):
    code, out, _ = fedflow("plan", "check", plan())
    assert code == 0
    assert "is valid" in out
    assert "may drop out" in out
    code, out, _ = fedflow("plan", "check", plan(), "--json")
    facts = json.loads(out)
    epsilons = [row["train_epsilon"] for row in facts["rounds"]]
    assert code == 0
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"noise_multiplier": "noise_multiplier = -1.0"}, "noise_multiplier"),
        ({"clipping_norm": "cliping_norm = 1.0"}, "clipping_norm"),
        ({"rounds": 'rounds = "many"'}, "rounds"),
        ({"rounds": "rounds = -1"}, "rounds"),
        ({"sample_rate": "sample_rate = 1.5"}, "sample_rate"),
        ({"delta": "delta = nan"}, "delta"),
        ({"workload": "workload = ["}, "plan.toml:"),
        ({"minimum": "minimum = 2"}, "minimum"),
        ({"unit": 'unit = "row"'}, "unit"),
    ],
)
def test_a_bad_plan_is_refused_with_file_line_field_and_what_is_allowed(
    fedflow, plan, changes, says
):
    code, _, err = fedflow("plan", "check", plan(**changes))
    assert code == 2
    assert "refused" in err
    assert "plan.toml" in err
    assert says in err


def test_an_unknown_field_suggests_the_nearest_name(fedflow, plan):
    _, _, err = fedflow("plan", "check", plan(clipping_norm="cliping_norm = 1.0"))
    assert "cliping_norm" in err
    assert "clipping_norm" in err.replace("cliping_norm", "")


def test_a_plan_that_is_not_there(fedflow, tmp_path):
    code, _, err = fedflow("plan", "check", tmp_path / "none.toml")
    assert code == 2
    assert "none.toml" in err


def test_a_plan_beyond_a_policy_names_both_numbers(fedflow, plan, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(
        template(authority="ab" * 32, coordinators=["cd" * 32], workload="randhie", dataset="v")
    )
    policy.chmod(0o600)
    loud = plan(clipping_norm="clipping_norm = 4.0")
    code, _, err = fedflow("plan", "check", loud, "--policy", policy)
    assert code == 2
    assert "privacy.clipping_norm is 4, at most 1 is allowed" in " ".join(err.split())


# ---- site


def test_a_site_is_not_made_twice(fedflow, site, tmp_path):
    code, _, err = fedflow("site", "init", site, "--label", "b", "--exchange", tmp_path)
    assert code == 2
    assert "already holds a site" in " ".join(err.split())


@pytest.mark.parametrize("command", [("site", "start"), ("site", "status"), ("ledger", "show")])
def test_a_folder_that_is_no_site_says_how_to_make_one(fedflow, tmp_path, command):
    code, _, err = fedflow(*command, tmp_path)
    assert code == 2
    assert "fedflow site init" in " ".join(err.split())


def test_status_of_a_site_whose_agent_does_not_run(fedflow, spent):
    code, out, _ = fedflow("site", "status", spent)
    assert code == 0
    assert "not running" in out
    assert "visits/train" in out
    assert "more rounds like the last" in out
    assert "a person's rows are at one site only" in out
    facts = json.loads(fedflow("site", "status", spent, "--json")[1])
    assert facts["agent"] is None
    assert facts["accounts"][0]["rounds_left"] > 0
    assert facts["accounts"][0]["burndown"][-1][2] == facts["accounts"][0]["epsilon_left"]
    assert 0 < facts["accounts"][0]["epsilon_spent"] < 3


def test_status_writes_a_page(fedflow, site, spent, tmp_path):
    assert fedflow("site", "status", spent, "--html", tmp_path / "budget.html")[0] == 0
    assert "visits/train" in (tmp_path / "budget.html").read_text()
    code, _, err = fedflow("site", "status", spent, "--html", tmp_path)
    assert code == 2
    assert "cannot be written" in err


# ---- ledger


def test_the_ledger_is_listed(fedflow, site, spent):
    code, out, _ = fedflow("ledger", "show", spent)
    assert code == 0
    for word in ("opened", "reserved", "settled", "job-1", "visits/train"):
        assert word in out
    assert "rounds left" in out[out.index("settled") :], "totals at the bottom"
    assert "ε left" in out
    lines = [json.loads(x) for x in fedflow("ledger", "show", spent, "--json")[1].splitlines()]
    assert [x["entry"] for x in lines] == ["opened", "reserved", "settled"]


def test_an_intact_ledger_verifies_in_its_folder_and_exported(fedflow, spent, tmp_path):
    assert fedflow("ledger", "verify", spent)[0] == 0
    file = tmp_path / "out.jsonl"
    assert fedflow("ledger", "export", spent, file)[0] == 0
    key = Identity.load(spent / "identity.pem").public.hex()
    code, out, _ = fedflow("ledger", "verify", file, "--key", key)
    assert code == 0
    assert "3 entries" in out
    assert fedflow("ledger", "verify", file, "--key", "ab" * 32)[0] == 2
    for bad in ("", "xyz", "AB" * 32):
        code, _, err = fedflow("ledger", "verify", file, "--key", bad)
        assert code == 2
        assert "64" in err


def test_one_changed_byte_in_the_ledger_is_found(fedflow, spent):
    file = spent / "ledger.sqlite"
    with sqlite3.connect(file) as db:
        blob = db.execute("SELECT signed FROM entries WHERE seq = 1").fetchone()[0]
    db.close()
    data = bytearray(file.read_bytes())
    at = data.find(blob)
    assert at > 0
    data[at + 60] ^= 1
    file.write_bytes(bytes(data))
    code, _, err = fedflow("ledger", "verify", spent)
    assert code == 2
    assert "ledger.sqlite" in err
    assert "entry 1" in err or "entry 2" in err


def test_one_changed_byte_in_an_exported_ledger_is_found(fedflow, spent, tmp_path):
    file = tmp_path / "out.jsonl"
    fedflow("ledger", "export", spent, file)
    key = Identity.load(spent / "identity.pem").public.hex()
    text = file.read_text()
    at = len(text) // 2
    file.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    code, _, err = fedflow("ledger", "verify", file, "--key", key)
    assert code == 2
    assert "refused" in err


# ---- audit


def test_auditing_a_folder_that_holds_nothing(fedflow, tmp_path):
    code, out, err = fedflow("audit", "verify", tmp_path)
    assert code in (1, 2)
    assert out + err
    code, out, err = fedflow("audit", "verify", tmp_path / "missing")
    assert code in (1, 2)


# ---- demo


def test_the_demo_refuses_a_site_it_does_not_have(fedflow, tmp_path):
    code, _, err = fedflow("demo", "--drop-site", "site-9", "--folder", tmp_path / "demo")
    assert code == 2
    assert "site-9" in err
    assert "site-3" in err
    assert "none" in err
    assert not (tmp_path / "demo").exists()


def test_the_demo_refuses_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    command = [sys.executable, "-m", "fedflow.cli.main", "demo", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "not empty" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("value", ["-1", "0", "1000", "lots"])
def test_the_demo_refuses_an_impossible_budget(fedflow, tmp_path, value):
    assert fedflow("demo", "--epsilon", value, "--folder", tmp_path / "demo")[0] == 2
    assert not (tmp_path / "demo").exists()


def test_the_demo_refuses_a_bad_plan(fedflow, tmp_path, plan):
    bad = plan(noise_multiplier="noise_multiplier = -1.0")
    code, _, err = fedflow("demo", "--plan", bad, "--folder", tmp_path / "demo")
    assert code == 2
    assert "noise_multiplier" in err
    assert not (tmp_path / "demo").exists()


# ---- the frame around all commands


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [(Misuse("a bug"), 3, "internal error"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_the_exit_status_says_whose_fault_it_was(
    fedflow, monkeypatch, tmp_path, error, status, words
):
    def fail(_, **options):
        raise error

    monkeypatch.setattr("fedflow.cli.audit.verify_folder", fail)
    code, out, err = fedflow("audit", "verify", tmp_path)
    assert code == status
    assert words in out + err
