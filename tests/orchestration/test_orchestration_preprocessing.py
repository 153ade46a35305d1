"""Federated statistics as a flow: charged like any job, shown as tables, handed on as a section."""

import hashlib
import json
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
from flow_room import coordinator_folder
from job_room import JOB, Room, make_plan
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from typer.testing import CliRunner

from fedflow.audit.verify import verify_folder
from fedflow.cli.main import app
from fedflow.coordinator.job import write_roster
from fedflow.errors import Refusal
from fedflow.exchange import open_exchange
from fedflow.federation.described import described
from fedflow.learning import workload as workloads
from fedflow.learning.first_model import plan_model
from fedflow.learning.plan import load_plan
from fedflow.orchestration.charts import columns_chart
from fedflow.site.trainer import Trained
from fedflow.workloads.tabular import Categorical, Numeric, Tabular
from flows.analytics import preprocessing

TABLE = Tabular(
    "table",
    unit_column="who",
    label="ill",
    columns=[Numeric("age", 0, 100), Categorical("ward", values=("a", "b"))],
    reference_persons=100,
)
DESCRIBING = make_plan(
    plan__workload="table",
    plan__rounds=2,
    strategy__name="moments",
    method__bins=4,
    evaluation=None,
    privacy__mechanism="summed",
    privacy__sample_rate=1.0,
    training__local_steps=1,
    training__learning_rate=1.0,
    secure_aggregation__value_range="auto",
)
#: What the sites of the room put into their sums: units; of age missing, v, v² and bins; of ward.
GIVEN = np.array([40, 10, 3, 6, 0, 10, 20, 0, 0, 25, 15, 0], np.float64)


class Counting:
    """A training process whose data are :data:`GIVEN`, on the grid of its round."""

    def __init__(self, plan):
        self.plan, self.tasks = plan, []

    async def run(self, task, *, sites=0, value_range=0.0, **_):
        self.tasks.append(task)
        if task == "check":
            return Trained(np.empty(0, np.float32))
        scale = self.plan.coding(sites, value_range).values.scale
        return Trained(np.rint(GIVEN * scale).astype(np.int64))


@pytest.fixture
def room(tmp_path, monkeypatch):
    point = SimpleNamespace(name="table", load=lambda: TABLE)
    points = type("Points", (list,), {"names": {"table"}})([point])
    monkeypatch.setattr(workloads.metadata, "entry_points", lambda group: points)
    (tmp_path / "exchange").mkdir()
    made = Room(
        tmp_path,
        exchange=open_exchange(str(tmp_path / "exchange")),
        plan=DESCRIBING,
        arrays=plan_model(TABLE, DESCRIBING),
        trainer=lambda site: Counting(DESCRIBING),
    )
    monkeypatch.setenv("FEDFLOW_COORDINATOR", str(coordinator_folder(made, tmp_path)))
    return made


async def artifacts_of(state):
    run = state.state_details.flow_run_id
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    async with get_client() as client:
        return {a.key: a.data for a in await client.read_artifacts(artifact_filter=mine)}


async def test_a_job_describes_is_charged_and_gives_a_section(connected, room, tmp_path):
    room.start()
    state = await preprocessing(JOB, sessions=False, return_state=True)
    await room.ends()
    assert state.is_completed(), state
    assert state.message == f"2 columns, in jobs/{JOB}/preprocessing.toml"
    for site in room.sites.values():
        assert [c.purpose for c in site.charges()] == ["train", "train"], "one release a round"
        assert list(site.ledger.accounts()) == ["visits/train"]
        assert "evaluate" not in site.trainer.tasks
    shown = await artifacts_of(state)
    age, ward = json.loads(shown[f"{JOB}-columns"])
    assert age["missing"].startswith("25.0%")
    assert ward["categories"] == "2 of 2: a, b"
    text = shown[f"{JOB}-preprocessing"]
    assert "[preprocessing]" in text
    assert "(data:image/svg+xml;base64," in text
    written = tmp_path / "coordinator-folder" / "jobs" / JOB / "preprocessing.toml"
    section = tomllib.loads(written.read_text())["preprocessing"]
    assert [column["name"] for column in section["columns"]] == ["age", "ward"]
    assert section["columns"][0]["centre"] == pytest.approx(50 + 50 * 3 / 30, abs=0.1)
    hand_in(room, tmp_path)
    report = verify_folder(tmp_path)
    assert report.ok, report.findings
    command_line(tmp_path, written.read_text())
    await room.stop()


def hand_in(room, folder):
    write_roster(folder / "audit" / "roster.json", room.job, room.authority.public)
    (folder / "audit" / "ledgers").mkdir(exist_ok=True)
    for label, site in room.sites.items():
        site.ledger.export(folder / "audit" / "ledgers" / f"{label}.jsonl")


def command_line(folder, section):
    """The same section from the finished job, into a plan."""
    run = CliRunner().invoke
    given = ["job", "preprocessing", JOB, "--coordinator", str(folder / "coordinator-folder")]
    assert run(app, given).output == section
    plan, new = folder / "plan.toml", folder / "new.toml"
    plan.write_text(PLAN)
    before = hashlib.sha256(plan.read_bytes()).digest()
    done = run(app, [*given, "--plan", str(plan), "-o", str(new)])
    assert done.exit_code == 0, done.output
    assert load_plan(new).is_prepared
    assert not load_plan(plan).is_prepared
    assert hashlib.sha256(plan.read_bytes()).digest() == before
    again = run(app, [*given, "-o", str(new)])
    assert "is there already" in str(again.exception)
    twice = run(app, [*given, "--plan", str(new), "-o", str(folder / "third.toml")])
    assert "there is such a section already" in str(twice.exception)


PLAN = """\
[plan]
name = "train"
workload = "table"
rounds = 2
[cohort]
minimum = 3
colluders = 0
[strategy]
name = "fedavg"
[training]
local_steps = 2
[privacy]
unit = "person"
clipping_norm = 1.0
noise_multiplier = 2.0
sample_rate = 0.1
delta = 1e-5
[evaluation]
every = 2
bins = 4
noise_multiplier = 4.0
[secure_aggregation]
bits = 32
value_range = "auto"
[deadlines]
round_seconds = 4
leg_seconds = 3
"""


async def test_a_job_that_trains_is_refused(connected, tmp_path, monkeypatch):
    (tmp_path / "exchange").mkdir()
    room = Room(tmp_path, exchange=open_exchange(str(tmp_path / "exchange")))
    monkeypatch.setenv("FEDFLOW_COORDINATOR", str(coordinator_folder(room, tmp_path)))
    state = await preprocessing(JOB, sessions=False, return_state=True)
    assert (state.name, "it trains" in state.message) == ("Refused", True)
    missing = await preprocessing("no-such-job", sessions=False, return_state=True)
    assert missing.name == "Refused"
    with pytest.raises(Refusal, match=r"strategy\.name 'fedavg'"):
        described(room.exchange, JOB, room.authority.public)
    await room.stop()


def test_a_picture_has_a_line_for_each_column_and_escapes_their_names():
    rows = [("<age>", 0.25, (0.1, 0.5, 0.9)), ("ward", 0.0, ())]
    picture = columns_chart("columns", rows)
    assert "&lt;age&gt;" in picture
    assert "25.0%" in picture
