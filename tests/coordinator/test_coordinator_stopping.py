"""What ends a job before its last round, each with its reason."""

import pytest
from job_room import Room, drive, make_plan

from fedflow.coordinator.records import RoundRecord
from fedflow.coordinator.stopping import ALL_ROUNDS, stop_reason

MSE = {
    "evaluation__metric": "mse",
    "evaluation__bins": None,
    "evaluation__error_bound": 100.0,
}


def records(*scores, metric="auc"):
    """One record per score; None for a round that was not scored."""
    return [RoundRecord(number=i + 1, metric=metric, score=s) for i, s in enumerate(scores)]


def why(scores=(), *, seconds=0.0, exhausted=0, metric="auc", **fields):
    named = {f"stopping__{name}": value for name, value in fields.items()}
    plan = make_plan(**named, **(MSE if metric == "mse" else {}))
    reason = stop_reason(plan, records(*scores, metric=metric), seconds, exhausted)
    return reason and reason.split(":")[0]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"scores": (0.6, None, 0.7), "target": 0.7}, "target-reached"),
        ({"scores": (0.6, None, 0.69), "target": 0.7}, None),
        ({"scores": (0.9, 0.6), "target": 0.7}, None),  # the model it has now is not that good
        ({"scores": (), "target": 0.0}, None),
        ({"scores": (9.0, 4.0), "target": 5.0, "metric": "mse"}, "target-reached"),
        ({"scores": (9.0, 6.0), "target": 5.0, "metric": "mse"}, None),
        ({"scores": (0.6, 0.7, None, 0.7, 0.69), "patience": 2}, "no-improvement"),
        ({"scores": (0.6, 0.7, 0.7, 0.71), "patience": 2}, None),
        ({"scores": (4.0, 5.0), "patience": 1, "metric": "mse"}, "no-improvement"),
        ({"scores": (5.0, 4.0), "patience": 1, "metric": "mse"}, None),
        ({"seconds": 59.9, "max_seconds": 60.0}, None),
        ({"seconds": 60.0, "max_seconds": 60.0}, "time-over"),
        ({"exhausted": 1, "exhausted_sites": 1}, None),
        ({"exhausted": 2, "exhausted_sites": 1}, "budgets-exhausted"),
        ({"scores": (0.9,), "seconds": 1e6, "exhausted": 9}, None),  # a plan without [stopping]
    ],
)
def test_every_reason(given, code):
    assert why(**given) == code


def test_the_reason_says_the_numbers():
    plan = make_plan(stopping__target=0.7)
    said = stop_reason(plan, records(0.6, 0.7123), 0.0, 0)
    assert said == "target-reached: AUC 0.712 after round 2, the target is 0.7"


async def test_a_job_that_reached_its_target_ends_completed_and_says_why(tmp_path):
    plan = make_plan(plan__rounds=6, evaluation__every=1, stopping__target=0.01)
    room = Room(tmp_path, plan)
    room.start()
    runner = await drive(room.runner())
    ends = await room.ends()
    assert {(e.outcome, e.code) for e in ends.values()} == {("completed", "completed")}
    assert len(runner.records) == 1
    assert runner.end.outcome == "completed"
    assert runner.end.reason.startswith("target-reached: AUC 0.")
    for site in room.sites.values():
        assert len(site.charges()) == 2, "nothing was paid for after it"
    await room.stop()


async def test_time_counts_from_the_first_order_also_for_a_second_coordinator(tmp_path):
    plan = make_plan(plan__rounds=2, stopping__max_seconds=3600.0)
    room = Room(tmp_path, plan)
    room.start()
    runner = await drive(room.runner(), close=False)
    assert runner.end is None
    again = room.runner()
    assert again._running_for() == pytest.approx(runner._running_for(), abs=0.5)
    assert again._running_for() > 0
    assert again.stop_reason() is None
    again._began -= 3600
    assert again.stop_reason().startswith("time-over: 36")
    await room.stop()


async def test_a_plan_without_stopping_runs_all_rounds(room):
    room.start()
    runner = await drive(room.runner())
    assert runner.end.reason == ALL_ROUNDS
