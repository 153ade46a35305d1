"""The parts of the overhead benchmark that can be wrong: which rounds count, and who takes part."""

import asyncio
import json

import pytest
from job_room import drive

from benchmarks.figures import WrongResult
from benchmarks.overhead.__main__ import main, our_rows
from benchmarks.overhead.federation import JOB, build, plan_of
from benchmarks.overhead.flower import rounds_in
from benchmarks.overhead.hosting import host
from benchmarks.overhead.running import Measured, read_events, training_seconds
from fedflow.coordinator.runner import JobRunner


def log_of(path, *, attempts=(1, 1, 1, 1), sites=3):
    """Orders at 0, 5, 6 and 8 seconds; the last round is scored by an order of its own."""
    events = []
    for number, (start, attempt) in enumerate(zip((0, 5, 6, 8), attempts, strict=True), 1):
        events += [
            {"event": "order", "kind": "train", "time": start, "attempt": attempt},
            {"event": "message", "time": start + 0.1},
            {"event": "round-done", "sites": ["a"] * sites, "seconds": number / 10},
        ]
    events.append({"event": "order", "kind": "evaluate", "time": 8.5, "attempt": 1})
    path.write_text("\n".join(map(json.dumps, events)))
    return path


def test_rounds_are_from_order_to_order_without_the_first(tmp_path):
    walls, sums = read_events(log_of(tmp_path / "log"), 3)
    assert walls == (1, 2)
    assert sums == (0.2, 0.3)


def test_rounds_that_went_another_way_give_no_figures(tmp_path):
    with pytest.raises(WrongResult, match="again"):
        read_events(log_of(tmp_path / "log", attempts=(1, 2, 1, 1)), 3)
    with pytest.raises(WrongResult, match="missing"):
        read_events(log_of(tmp_path / "log", sites=2), 3)


def test_the_bar_is_judged_with_three_sites_and_beyond_training():
    rows = list(our_rows(Measured(3, (0.6, 0.5, 0.4), (0.3,), 0.2, "")))
    assert rows[0].name == "round_overhead_s"
    assert rows[0].value == pytest.approx(0.3)
    assert rows[0].met is True
    assert rows[1].value == 0.5
    assert next(our_rows(Measured(10, (0.6,), (0.3,), 0.2, ""))).met is None


def test_a_peer_without_rounds_gives_no_figures():
    assert rounds_in("x\nROUND_S 9.1\nROUND_S 6.25\nROUND_S 6.5\n") == (6.25, 6.5)
    with pytest.raises(WrongResult, match="broken"):
        rounds_in("ROUND_S 9.1\nbroken")


@pytest.mark.parametrize("wrong", [["--sites", "2"], ["--rounds", "3"]])
def test_too_small_a_federation_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2
    assert "at least 3 sites" in capsys.readouterr().err


def test_a_peer_needs_our_figure_beside_it(capsys):
    with pytest.raises(SystemExit):
        main(["--sites", "10", "--peer", "flwr"])
    assert "name 3 among" in capsys.readouterr().err


async def test_sites_that_share_a_process_take_part_in_every_round(tmp_path):
    federation = build(tmp_path, 4, plan_of(4))
    federation.publish()
    assert training_seconds(federation, 2) > 0
    hosted = asyncio.create_task(host(JOB, [federation.site(name) for name in federation.labels]))
    runner = await drive(JobRunner(federation.coordinator, JOB), join_seconds=60)
    await hosted
    assert all(len(record.sites) == 4 for record in runner.records)
    walls, _ = read_events_of(runner, federation)
    assert len(walls) == 2
    assert runner.records[-1].score is not None
    assert plan_of(4).secure_aggregation == federation.plan.secure_aggregation


def read_events_of(runner, federation):
    """As the flow writes it: a line per finished round."""
    for record in runner.records:
        runner.event("round-done", **record.facts())
    return read_events(federation.coordinator.events_path(JOB), 4)
