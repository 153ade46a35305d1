"""Plans fixed beforehand: charged whole, once, and the rules that would be invalid do not exist."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from pathlib import Path

import pytest
from scipy.special import ndtr

from fedflow.crypto.identity import Identity
from fedflow.errors import Misuse, Refusal, Violation
from fedflow.privacy import accounts, chain, journal, ledger, status
from fedflow.privacy.accounting import epsilon_pld, epsilon_rdp
from fedflow.privacy.chain import Chain
from fedflow.privacy.entries import (
    ACCOUNTINGS,
    GENESIS,
    Committed,
    Entry,
    Opened,
    Reserved,
    Settled,
    sign_entry,
)
from fedflow.privacy.events import ReleaseEvent
from fedflow.privacy.ledger import Ledger

ACCOUNT, DELTA = "randhie/train", 1e-5
EVENT = ReleaseEvent("poisson-gaussian", 0.05, 1.5, 10)
SUMMED = ReleaseEvent("summed-gaussian", 1.0, 12.0, 1, minimum=4, colluders=1)
IDENTITY = Identity.generate()
ONE, TWO = b"1" * 32, b"2" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def books(path: Path) -> Ledger:
    made = Ledger.create(path, IDENTITY, "site-1")
    made.open_account(ACCOUNT, epsilon=3.0, delta=2 * DELTA, accounting="fixed-plan")
    return made


def commit(books: Ledger, manifest: bytes = ONE, **changes: object) -> Committed:
    terms: dict[str, object] = {"planned": 8, "spare": 2, "delta": DELTA, "event": EVENT} | changes
    event = terms.pop("event")
    return books.commit_plan(ACCOUNT, event, job="demo", manifest=manifest, **terms)  # type: ignore[arg-type]


def release(books: Ledger, number: int, manifest: bytes = ONE, event: ReleaseEvent = EVENT):
    return books.reserve(
        ACCOUNT,
        event,
        context=number.to_bytes(32, "big"),
        job="demo",
        manifest=manifest,
        round=number,
        attempt=1,
        purpose="train",
        release=b"masked bytes",
    )


def code_of(work) -> str:
    with pytest.raises((Refusal, Violation)) as caught:
        work()
    return caught.value.code


def test_a_plan_is_charged_whole_and_pays_for_its_releases(books: Ledger, path: Path) -> None:
    terms = {"manifest": ONE, "planned": 8, "spare": 2, "delta": DELTA}
    assert code_of(lambda: books.check(ACCOUNT, EVENT, manifest=ONE)) == "no-commitment"
    left = books.check_plan(ACCOUNT, EVENT, **terms)
    entry = commit(books)
    assert entry.epsilon == epsilon_pld([EVENT.repeated(10)], DELTA)
    assert entry.epsilon < epsilon_rdp([EVENT.repeated(10)], DELTA), "what it is for"
    for number in range(10):
        assert books.check(ACCOUNT, EVENT, manifest=ONE) == left
        assert release(books, number).rho == 0.0
    assert code_of(lambda: books.check(ACCOUNT, EVENT, manifest=ONE)) == "budget-exhausted"
    assert code_of(lambda: release(books, 10)) == "budget-exhausted"
    found = Ledger.open(path, IDENTITY.public).account_status(ACCOUNT)
    assert (found.epsilon_spent, found.delta_spent) == (entry.epsilon, DELTA)
    assert (found.accounting, found.order, found.plans, found.releases) == (
        "fixed-plan",
        0.0,
        1,
        10,
    )
    assert found.epsilon_left == left == pytest.approx(3.0 - entry.epsilon)


def test_the_price_agrees_with_the_exact_one_of_a_gaussian() -> None:
    """n Gaussians of multiplier s are one with m = sqrt(n)/s: Balle and Wang 2018, Theorem 8."""
    for noise, releases in ((12.0, 30), (4.0, 10), (2.0, 5)):
        event = dataclasses.replace(SUMMED, noise_multiplier=noise)
        mu = math.sqrt(releases) / noise
        low, high = 0.0, 50.0
        for _ in range(80):
            middle = (low + high) / 2
            delta = ndtr(mu / 2 - middle / mu) - math.exp(middle) * ndtr(-mu / 2 - middle / mu)
            low, high = (middle, high) if delta > DELTA else (low, middle)
        # rounded up to a grid of 1e-3, never below the truth
        assert high - 1e-6 <= accounts.plan_epsilon(event, releases, DELTA) <= high + 0.02


def test_plans_add_up_in_epsilon_and_in_delta(books: Ledger) -> None:
    first, second = commit(books), commit(books, TWO, planned=3, spare=0)
    found = books.account_status(ACCOUNT)
    assert found.epsilon_spent == pytest.approx(first.epsilon + second.epsilon)
    assert found.delta_spent == 2 * DELTA
    held = books.head()
    assert code_of(lambda: commit(books, b"3" * 32, planned=1)) == "budget-exhausted", "no delta"
    assert books.head() == held


def test_a_plan_that_does_not_fit_is_refused_whole(books: Ledger) -> None:
    held = books.head()
    with pytest.raises(Refusal, match="all 1002 releases of this plan cost") as caught:
        commit(books, planned=1000)
    assert caught.value.code == "budget-exhausted"
    assert books.head() == held
    assert code_of(lambda: release(books, 1)) == "no-commitment"
    assert code_of(lambda: commit(books, delta=3 * DELTA)) == "budget-exhausted"


def test_committing_again_is_the_same_plan_or_refused(books: Ledger) -> None:
    first = commit(books)
    assert commit(books) == first
    assert commit(books, spare=50) == first, "attempts are paid for once, not topped up"
    for other in ({"planned": 9}, {"delta": DELTA / 2}, {"event": SUMMED}):
        assert code_of(lambda other=other: commit(books, **other)) == "already-committed"
    assert books.account_status(ACCOUNT).plans == 1


def test_a_release_must_be_the_one_its_plan_describes(books: Ledger) -> None:
    commit(books)
    noisier = dataclasses.replace(EVENT, noise_multiplier=1.6)
    assert code_of(lambda: release(books, 1, event=noisier)) == "wrong-event"
    assert code_of(lambda: release(books, 1, manifest=TWO)) == "no-commitment"
    other = dataclasses.replace(EVENT, unit="record")
    assert code_of(lambda: release(books, 1, event=other)) == "wrong-unit"
    assert code_of(lambda: commit(books, TWO, event=other)) == "wrong-unit"


def test_two_kinds_of_account_do_not_mix(books: Ledger) -> None:
    books.open_account("a/train", epsilon=3.0, delta=DELTA, order=8.0)
    terms = {"job": "demo", "manifest": ONE, "planned": 1, "spare": 0, "delta": DELTA}
    assert code_of(lambda: books.commit_plan("a/train", EVENT, **terms)) == "wrong-accounting"
    for account, order, accounting in ((ACCOUNT, 8.0, "adaptive"), ("a/train", 0.0, "fixed-plan")):
        delta = 2 * DELTA if account == ACCOUNT else DELTA
        again = {"epsilon": 3.0, "delta": delta, "order": order, "accounting": accounting}
        assert code_of(lambda a=account, t=again: books.open_account(a, **t)) == "account-exists"


def test_early_stopping_settling_and_restarts_give_nothing_back(books: Ledger, path: Path) -> None:
    commit(books, event=SUMMED)
    before = books.account_status(ACCOUNT)
    release(books, 1, event=SUMMED)
    assert books.settle((1).to_bytes(32, "big"), 100).rho == 0.0
    books.close()
    after = Ledger.open(path, IDENTITY).account_status(ACCOUNT)
    assert (after.epsilon_spent, after.delta_spent) == (before.epsilon_spent, before.delta_spent)
    # the figure for releases made knows better, but decides nothing
    settled = SUMMED.settled(100)
    assert after.epsilon_pld == epsilon_pld([settled], 2 * DELTA) < after.epsilon_spent


# --- the rules, broken by the site itself

OPENED = Opened(
    *(0, GENESIS, 5, ACCOUNT, "site-1", 3.0, DELTA, 0.0, "person", "zero-out", "fixed-plan")
)
PRICE = epsilon_pld([SUMMED.repeated(3)], DELTA)
COMMITTED = Committed(
    *(0, GENESIS, 6, ACCOUNT, "demo", ONE, SUMMED.canonical(), 2, 1, PRICE, DELTA)
)


def reserved(number: int = 0, **changes: object) -> Reserved:
    base = Reserved(
        *(0, GENESIS, 6, ACCOUNT, "train", "demo", ONE, 1, 1, number.to_bytes(32, "big")),
        SUMMED.canonical(),
        0.0,
        bytes(32),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def settled(survivors: int, rho: float) -> Settled:
    return Settled(0, GENESIS, 7, ACCOUNT, bytes(32), survivors, rho)


def chained(*entries: Entry) -> Chain:
    made = Chain(IDENTITY.public)
    for entry in entries:
        linked = dataclasses.replace(entry, seq=len(made.entries), previous=made.head)
        made.add(sign_entry(linked, IDENTITY))
    return made


def changed(entry: Entry, **changes: object) -> Entry:
    return dataclasses.replace(entry, **changes)  # type: ignore[arg-type]


ADAPTIVE = changed(OPENED, order=8.0, accounting="adaptive")
PLAN = (OPENED, COMMITTED)


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        # accounts
        ((changed(OPENED, accounting="pld"),), "bad-entry"),
        ((changed(OPENED, accounting="best-order"),), "bad-entry"),
        ((changed(OPENED, accounting=""),), "bad-entry"),
        ((changed(OPENED, order=8.0),), "bad-entry"),
        ((changed(ADAPTIVE, order=0.0),), "bad-entry"),
        ((ADAPTIVE, changed(ADAPTIVE, order=6.0)), "bad-entry"),  # a better order afterwards
        ((OPENED, ADAPTIVE), "bad-entry"),
        # plans
        ((COMMITTED,), "bad-entry"),
        ((ADAPTIVE, COMMITTED), "bad-entry"),
        ((OPENED, changed(COMMITTED, epsilon=PRICE - 0.0011)), "bad-price"),
        ((OPENED, changed(COMMITTED, epsilon=PRICE + 0.0011)), "bad-price"),
        ((OPENED, changed(COMMITTED, spare=2)), "bad-price"),
        ((OPENED, changed(COMMITTED, planned=3)), "bad-price"),
        ((OPENED, changed(COMMITTED, delta=DELTA * 0.9)), "bad-price"),
        ((OPENED, changed(COMMITTED, planned=0, spare=3)), "bad-entry"),
        ((OPENED, changed(COMMITTED, planned=2**32 - 1, event=EVENT.canonical())), "bad-price"),
        ((OPENED, changed(COMMITTED, event="{}")), "bad-event"),
        (
            (
                OPENED,
                changed(
                    COMMITTED,
                    event=changed(SUMMED, unit="record").canonical(),  # type: ignore[type-var, attr-defined]
                ),
            ),
            "bad-entry",
        ),
        ((*PLAN, COMMITTED), "bad-entry"),
        ((*PLAN, changed(COMMITTED, manifest=TWO)), "over-budget"),  # no delta left
        ((changed(OPENED, epsilon=PRICE * 0.99), COMMITTED), "over-budget"),
        # releases
        ((OPENED, reserved()), "bad-entry"),
        ((*PLAN, reserved(manifest=TWO)), "bad-entry"),
        ((*PLAN, reserved(event=EVENT.canonical())), "bad-entry"),
        ((*PLAN, reserved(rho=1e-9)), "bad-price"),
        ((*PLAN, reserved(), reserved(1), reserved(2), reserved(3)), "over-budget"),
        # settlements: noted, at nothing
        ((*PLAN, reserved(), settled(3, 0.0)), "bad-entry"),
        ((*PLAN, reserved(), settled(9, 1e-9)), "bad-price"),
        ((*PLAN, reserved(), settled(9, -1e-9)), "bad-entry"),
    ],
)
def test_each_rule_of_the_chain(entries: tuple[Entry, ...], code: str) -> None:
    chained(*entries[:-1])
    with pytest.raises(Violation) as caught:
        chained(*entries)
    assert caught.value.code == code


def test_a_plan_of_millions_of_steps_is_priced_at_once_and_from_above() -> None:
    event = ReleaseEvent("poisson-gaussian", 0.001, 20.0, 1000)
    assert accounts.plan_epsilon(event, 4000, DELTA) == epsilon_rdp([event.repeated(4000)], DELTA)


# --- what cannot be selected


def test_there_are_two_rules_and_no_third(books: Ledger) -> None:
    assert set(ACCOUNTINGS) == {"adaptive", "fixed-plan"}
    kinds = set(accounts.Account.__subclasses__())
    assert kinds == {accounts.AdaptiveAccount, accounts.FixedPlanAccount}
    for other in ("pld", "odometer", "best-order", "prv", "gdp", ""):
        with pytest.raises(Misuse):
            books.open_account("b/train", epsilon=1.0, delta=DELTA, accounting=other)
    assert books.accounts() == (ACCOUNT,)
    with pytest.raises(Misuse):
        books.open_account("b/train", epsilon=1.0, delta=DELTA)  # adaptive needs its order


def test_nothing_in_the_ledger_has_a_way_to_give_back_or_to_decide_by_pld() -> None:
    """By the source: the figure by PLD is for display, and for whole plans beforehand."""
    figures = {"epsilon_pld", "epsilon_rdp", "best_order", "choose_order"}
    users: dict[str, set[str]] = {}
    for module in (accounts, chain, journal, ledger, status):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef):
                names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                for name in names & figures:
                    users.setdefault(name, set()).add(node.name)
    assert users == {"epsilon_pld": {"plan_epsilon", "status_of"}}
    # What can change a ledger at all: everything that asks the journal for a transaction.
    writers = {
        node.name
        for node in ast.walk(ast.parse(inspect.getsource(ledger)))
        if isinstance(node, ast.FunctionDef) and "writing()" in ast.unparse(node)
    }
    assert writers == {"open_account", "commit_plan", "reserve", "settle", "rotate"}
