"""What a plan costs by round, and that it is what a ledger will really charge."""

from __future__ import annotations

from pathlib import Path

import pytest
from plans import make_plan

from fedflow.crypto.identity import Identity
from fedflow.errors import Refusal
from fedflow.privacy.accounting import choose_order, epsilon_pld
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.plan_cost import (
    evaluation_event,
    evaluations,
    plan_cost,
    rounds_within,
    training_event,
)


def test_events_say_what_the_plan_says() -> None:
    plan = make_plan()
    event = training_event(plan)
    assert (event.kind, event.sample_rate, event.noise_multiplier, event.steps, event.unit) == (
        "poisson-gaussian",
        0.1,
        1.5,
        8,
        "person",
    )
    scored = evaluation_event(plan)
    assert (scored.kind, scored.sample_rate, scored.noise_multiplier, scored.steps) == (
        "summed-gaussian",
        1.0,
        6.0,
        1,
    )
    assert (scored.minimum, scored.colluders) == (4, 1)
    whole = make_plan(privacy__noise_multiplier=2, privacy__sample_rate=1)
    assert training_event(whole).noise_multiplier == 2.0


@pytest.mark.parametrize(("rounds", "every"), [(10, 3), (9, 3), (1, 5), (7, 1), (4, 4), (5, 4)])
def test_evaluations_are_counted_as_they_happen(rounds: int, every: int) -> None:
    plan = make_plan(plan__rounds=rounds, evaluation__every=every)
    for upto in range(rounds + 1):
        counted = sum(plan.is_evaluated(number) for number in range(1, upto + 1))
        assert evaluations(plan, upto) == counted
    assert plan.is_evaluated(rounds)


def test_the_table_is_cumulative_and_ends_with_the_last_round() -> None:
    plan = make_plan()
    cost = plan_cost(plan)
    assert [row.round for row in cost.rows] == list(range(1, 11))
    assert cost.total.round == 10
    train = [row.train_epsilon for row in cost.rows]
    assert train == sorted(train)
    assert train[0] > 0
    for row in cost.rows:
        assert row.train_epsilon_pld <= row.train_epsilon + 1e-3
        assert row.evaluate_epsilon_pld <= row.evaluate_epsilon + 1e-3
    assert cost.rows[1].evaluate_epsilon == 0.0
    assert cost.rows[2].evaluate_epsilon > 0.0
    total = epsilon_pld([training_event(plan).repeated(10)], 1e-5)
    assert cost.total.train_epsilon_pld == total


def test_a_long_plan_has_a_short_table() -> None:
    long = plan_cost(make_plan(plan__rounds=2500))
    assert len(long.rows) == 50
    assert long.total.round == 2500


def test_the_table_is_what_the_ledger_charges(tmp_path: Path) -> None:
    plan, epsilon = make_plan(), 4.0
    cost = plan_cost(plan, epsilon)
    ledger = Ledger.create(tmp_path / "l.sqlite", Identity.generate(), "site-1")
    events = {"train": training_event(plan), "evaluate": evaluation_event(plan)}
    for partition, event in events.items():
        order = choose_order(event, epsilon, 1e-5)
        ledger.open_account(f"d/{partition}", epsilon=epsilon, delta=1e-5, order=order)
    for row in cost.rows:
        for at, (partition, event) in enumerate(events.items()):
            if partition == "train" or plan.is_evaluated(row.round):
                ledger.reserve(
                    f"d/{partition}",
                    event,
                    context=bytes([row.round, at]) + bytes(30),
                    job="demo",
                    manifest=bytes(32),
                    round=row.round,
                    attempt=0,
                    purpose=partition,
                    release=b"x",
                )
        spent = [ledger.account_status(f"d/{p}").epsilon_spent for p in events]
        assert spent == pytest.approx([row.train_epsilon, row.evaluate_epsilon], rel=1e-12)


def test_rounds_within_is_the_number_a_filter_admits() -> None:
    event = training_event(make_plan())
    fits = rounds_within(event, 3.0, 1e-5)
    order = choose_order(event, 3.0, 1e-5)
    costs = plan_cost(make_plan(plan__rounds=fits + 1), 3.0)
    assert costs.train_order == order
    assert costs.rows[fits - 1].train_epsilon <= 3.0 < costs.rows[fits].train_epsilon


def test_a_budget_that_pays_for_no_round_says_so() -> None:
    with pytest.raises(Refusal) as caught:
        plan_cost(make_plan(privacy__noise_multiplier=0.1), 0.5)
    assert caught.value.code == "bad-budget"
