"""Artifacts of a job: what is in them, what never is, and that they never hold up a round."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import xml.etree.ElementTree as ET

import pytest
from job_room import Room, drive
from prefect import flow
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import temporary_settings

from fedflow.coordinator.records import RoundRecord
from fedflow.orchestration import publishing, round_tables
from fedflow.orchestration.charts import bars_chart, rounds_chart
from fedflow.orchestration.publishing import Latest, attempt
from fedflow.orchestration.round_artifacts import (
    _SHOWN,
    publish_end,
    publish_progress,
    publish_rounds,
)
from fedflow.orchestration.tasks import live_job

RECORDS = [
    RoundRecord(number=1, sites=["a", "b", "c"], seconds=2.0, bytes={"a": 2048, "b": 2048}),
    RoundRecord(
        number=2,
        sites=["a"],
        dropped=["b"],
        recovered=["b"],
        absent=["d"],
        refused={"c": "budget-exhausted: the account is spent"},
        score=0.71,
        score_stderr=0.01,
    ),
]


# ---- pure


def test_refusals_and_losses_lead_and_say_why():
    rows = round_tables.site_rows(RECORDS[1])
    assert [(r["site"], r["part"]) for r in rows] == [
        ("c", "refused"),
        ("b", "dropped"),
        ("d", "away"),
        ("a", "in the sum"),
    ]
    assert rows[0]["reason"] == "budget-exhausted: the account is spent"
    assert "recovered" in rows[1]["reason"]


def test_attendance_counts_each_site_once_a_round():
    rows = {r["site"]: r for r in round_tables.attendance("abcd", RECORDS)}
    assert rows["a"]["in the sum"] == 2
    assert rows["b"]["in the sum"] == rows["b"]["dropped"] == 1
    assert rows["c"]["refused"] == "budget-exhausted × 1"
    assert rows["d"]["away"] == 1


def test_large_cohorts_and_long_jobs_stay_readable():
    many = [f"site-{i:04}" for i in range(5000)]
    records = [RoundRecord(number=n + 1, sites=many[1:], dropped=many) for n in range(1000)]
    assert len(round_tables.site_rows(records[-1])) == round_tables.MOST_SITES
    rows = round_tables.round_rows(records)
    assert rows[-1]["round"] == 1000
    assert len(rows) == round_tables.MOST_ROUNDS
    assert len(json.dumps(rows)) < 200_000
    assert "and 4992 more" in rows[0]["dropped"]
    assert len(rounds_chart("t", records, 5000)) < 500_000


@pytest.mark.parametrize("hostile", ["| x | y |", "</script><img src=x>", "`**#_*`", "a\nb"])
def test_text_of_others_makes_no_markup(hostile):
    for line in round_tables.table([{"reason": hostile}])[2:]:
        inner = line.strip("| ").replace("\\|", "")
        assert "|" not in inner
        assert "<" not in inner
        assert "\n" not in line
    ET.fromstring(rounds_chart(hostile, RECORDS, 4))
    ET.fromstring(bars_chart(hostile, [(hostile, [1.0, 2.0])], [hostile, "b"]))


@pytest.mark.parametrize(
    "records",
    [
        [],
        RECORDS[:1],
        RECORDS[1:],
        [RoundRecord(number=1, sites=["a"], score=1.0, score_stderr=5.0)],
        [RoundRecord(number=7, sites=[], score=0.0, score_stderr=None)],
    ],
)
def test_every_history_has_a_picture_within_its_frame(records):
    root = ET.fromstring(rounds_chart("job", records, 4))
    height = float(root.get("height"))
    for node in root.iter():
        for name in ("y", "cy", "y1", "y2"):
            if node.get(name):
                assert 0 <= float(node.get(name)) <= height


# ---- publishing


async def test_only_the_newest_is_published_and_nobody_waits():
    told, gate, latest = [], asyncio.Event(), Latest()

    def publication(number):
        async def publish():
            await gate.wait()
            told.append(number)

        return publish

    for number in range(5):
        latest.offer(publication(number))
        await asyncio.sleep(0)
    gate.set()
    await latest.settle()
    assert told == [0, 4], "the first was on its way, the last replaced what waited"


async def test_what_fails_or_hangs_is_given_up(monkeypatch):
    async def broken():
        raise RuntimeError("secret")

    async def endless():
        await asyncio.Event().wait()

    assert not await attempt(broken)
    assert not await attempt(endless, 0.01)
    latest = Latest()
    latest.offer(endless)
    await latest.settle(0.01)


@pytest.fixture
def silent_server():
    """Accepts connections and never answers: worse than a server that is down."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"


async def test_a_silent_server_costs_a_round_nothing(tmp_path, silent_server, monkeypatch):
    monkeypatch.setattr("fedflow.orchestration.round_artifacts.PATIENCE", 0.2)
    monkeypatch.setattr(publishing.Latest.settle, "__defaults__", (0.1,))
    room = Room(tmp_path)
    room.start()
    runner = await drive(room.runner())
    with temporary_settings({"api.url": silent_server}), live_job(runner) as live:
        for _ in range(20):
            await publish_progress(live)
            await publish_rounds(live)
        waiting = _SHOWN[runner].progress, _SHOWN[runner].rounds
        assert not any(latest._task.done() for latest in waiting), "or somebody waited for them"
        await publish_end(live, "aborted", "nobody came")
    await room.stop()


# ---- on a real server


async def test_a_job_leaves_progress_tables_picture_and_summary(connected, tmp_path):
    room = Room(tmp_path)
    room.start("alpha", "beta", "delta")  # gamma never comes
    runner = await drive(room.runner(), join_seconds=0.5)

    @flow(name="publishing", persist_result=False)
    async def publish():
        with live_job(runner) as live:
            await publish_progress(live)
            await publish_rounds(live)
            await publish_end(live, "completed", "all rounds of the plan are done")

    state = await publish(return_state=True)
    run = state.state_details.flow_run_id
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    async with connected_client() as client:
        found = {a.key: a for a in await client.read_artifacts(artifact_filter=mine)}
    await room.stop()
    job = runner.job.id
    names = ("progress", "round", "rounds", "summary")
    assert set(found) == {f"{job}-{name}" for name in names}
    assert found[f"{job}-progress"].data == 100.0
    rows = json.loads(found[f"{job}-rounds"].data)
    assert [r["round"] for r in rows] == [r.number for r in runner.records]
    parts = {r["site"]: r["part"] for r in json.loads(found[f"{job}-round"].data)}
    assert parts["gamma"] == "away"
    text = found[f"{job}-summary"].data
    picture = text.partition("(data:image/svg+xml;base64,")[2].partition(")")[0]
    ET.fromstring(base64.b64decode(picture))
    assert str(tmp_path) not in text, "no path of the coordinator's machine"
    assert text.startswith(f"# {job}: completed")
    assert runner.model_digest.hex()[:12] in text
    assert runner.coordinator.state_path(job).with_name("report.html").exists()


def connected_client():
    # artifacts keep what they show under "data", which the scrubbed client would take out
    from prefect.client.orchestration import get_client

    return get_client()
