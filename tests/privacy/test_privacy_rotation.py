"""A ledger whose key is replaced goes on: what was spent stays spent, whoever reads it."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedflow.crypto.identity import Identity
from fedflow.errors import FedflowError, InputError, Refusal, Violation
from fedflow.privacy.accounting import choose_order
from fedflow.privacy.chain import Chain
from fedflow.privacy.entries import (
    GENESIS,
    TAKEOVER_LABEL,
    Opened,
    Rotated,
    entry_hash,
    sign_entry,
)
from fedflow.privacy.events import ReleaseEvent
from fedflow.privacy.export import read_export
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.outlook import outlooks

EVENT = ReleaseEvent("poisson-gaussian", 0.05, 1.2, 10)
ORDER = choose_order(EVENT, 3.0, 1e-5)
KEYS = [Identity.generate() for _ in range(4)]


def reserve(ledger: Ledger, number: int) -> None:
    ledger.reserve(
        "visits/train",
        EVENT,
        context=number.to_bytes(32, "big"),
        job="demo",
        manifest=bytes(32),
        round=1,
        attempt=1,
        purpose="train",
        release=b"bytes %d" % number,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger.create(tmp_path / "ledger.sqlite", KEYS[0], "alpha")
    made.open_account("visits/train", epsilon=3.0, delta=1e-5, order=ORDER)
    reserve(made, 1)
    return made


def test_the_budget_never_resets(ledger: Ledger, tmp_path: Path) -> None:
    before = ledger.account_status("visits/train")
    entry = ledger.rotate(KEYS[1])
    assert ledger.account_status("visits/train") == before
    assert ledger.key == KEYS[1].public
    reserve(ledger, 2)
    ledger.rotate(KEYS[2])
    assert ledger.rotate(KEYS[2]).new_key == KEYS[2].public.raw  # again, as after a crash
    reserve(ledger, 3)
    ledger.close()
    again = Ledger.open(tmp_path / "ledger.sqlite", KEYS[2])
    assert len(again.charges("visits/train")) == 3
    assert again.account_status("visits/train").epsilon_left < before.epsilon_left
    assert [k.raw for k in again.keys] == [k.public.raw for k in KEYS[:3]]
    assert again.release((1).to_bytes(32, "big")) == b"bytes 1"
    assert entry.seq == 2
    (account,) = outlooks(again.entries())
    assert account.rounds_left is not None


def test_the_old_key_signs_nothing_more(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger.open(tmp_path / "ledger.sqlite", KEYS[0])
    ledger.rotate(KEYS[1])
    with pytest.raises(Refusal) as caught:
        reserve(other, 2)
    assert caught.value.code == "key-replaced"
    assert len(other.charges("visits/train")) == 1
    with pytest.raises(InputError, match="not the ledger of"):
        Ledger.open(tmp_path / "ledger.sqlite", KEYS[0])
    assert Ledger.open(tmp_path / "ledger.sqlite", None).key == KEYS[1].public


def test_a_key_the_ledger_had_never_comes_back(ledger: Ledger) -> None:
    ledger.rotate(KEYS[1])
    for key in KEYS[:1]:
        with pytest.raises(Violation, match="had this key before"):
            ledger.rotate(key)
    assert len(ledger.entries()) == 3


@pytest.mark.parametrize("known", [0, 1, 2])
def test_any_of_its_keys_is_enough_to_read_an_export(
    ledger: Ledger, tmp_path: Path, known: int
) -> None:
    ledger.rotate(KEYS[1])
    ledger.rotate(KEYS[2])
    reserve(ledger, 2)
    ledger.export(tmp_path / "export")
    reading = read_export(tmp_path / "export", KEYS[known].public)
    assert reading.findings == []
    assert reading.head is not None
    assert reading.head.entries == 5
    foreign = read_export(tmp_path / "export", KEYS[3].public)
    assert [finding.code for finding in foreign.findings] == ["foreign-ledger"]
    assert foreign.chain.entries == []


def test_a_ledger_with_one_key_is_exported_as_ever(ledger: Ledger, tmp_path: Path) -> None:
    ledger.export(tmp_path / "export")
    lines = (tmp_path / "export").read_text().splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["entry", "entry", "head"]
    named = [json.dumps({"key": KEYS[0].public.hex()}), *lines]
    (tmp_path / "export").write_text("\n".join(named) + "\n")
    findings = read_export(tmp_path / "export", KEYS[0].public).findings
    assert [finding.code for finding in findings] == ["bad-line"]


def test_every_line_of_an_export_counts(ledger: Ledger, tmp_path: Path) -> None:
    ledger.rotate(KEYS[1])
    reserve(ledger, 2)
    ledger.export(tmp_path / "export")
    lines = (tmp_path / "export").read_text().splitlines()
    for gone in range(len(lines)):
        rest = lines[:gone] + lines[gone + 1 :]
        (tmp_path / "cut").write_text("\n".join(rest) + "\n")
        for key in KEYS[:2] if gone else KEYS[1:2]:  # the first key is told by who knows it
            assert read_export(tmp_path / "cut", key.public).findings, gone
    # a middle of somebody's ledger cannot be shown as a ledger of its own
    (tmp_path / "cut").write_text("\n".join([lines[0], *lines[3:]]) + "\n")
    assert read_export(tmp_path / "cut", KEYS[1].public).findings


def opened(seq: int = 0, previous: bytes = GENESIS) -> Opened:
    return Opened(
        *(seq, previous, 5, "visits/train", "alpha", 3.0, 1e-5, ORDER),
        *("person", "zero-out", "adaptive"),
    )


def handover(seq: int, previous: bytes, old: Identity, new: Identity, by: Identity) -> Rotated:
    body = Rotated.taken_over(seq, previous, old.public.raw, new.public.raw)
    return Rotated(seq, previous, 6, new.public.raw, by.sign(TAKEOVER_LABEL, body))


def test_nobody_is_put_on_a_ledger_they_did_not_take() -> None:
    chain, first = Chain(KEYS[0].public), sign_entry(opened(), KEYS[0])
    chain.add(first)
    head = entry_hash(first)
    good = handover(1, head, KEYS[0], KEYS[1], KEYS[1])
    for bad in (
        handover(1, head, KEYS[0], KEYS[1], KEYS[0]),  # not agreed to by the new key
        handover(1, GENESIS, KEYS[0], KEYS[1], KEYS[1]),  # after another past
        dataclasses.replace(handover(1, head, KEYS[2], KEYS[1], KEYS[1])),  # from another key
        handover(2, head, KEYS[0], KEYS[1], KEYS[1]),
        dataclasses.replace(good, new_key=KEYS[2].public.raw),
        handover(1, head, KEYS[0], KEYS[0], KEYS[0]),  # to itself
    ):
        with pytest.raises(Violation):
            chain.add(sign_entry(bad, KEYS[0]))
        assert chain.keys == [KEYS[0].public]
    for signer in KEYS[1:]:
        with pytest.raises(Violation):
            chain.add(sign_entry(good, signer))
    chain.add(sign_entry(good, KEYS[0]))
    assert chain.key == KEYS[1].public


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8))
@settings(max_examples=40, deadline=None)
def test_only_the_key_it_has_goes_on_with_a_ledger(steps: list[tuple[int, bool]]) -> None:
    """Whoever signs what: an entry counts exactly when it is by the ledger's key of that moment."""
    chain, had = Chain(KEYS[0].public), [0]
    for signer, rotate in steps:
        seq, previous = len(chain.entries), chain.head
        to = (signer + 1) % 4
        entry = (
            handover(seq, previous, KEYS[signer], KEYS[to], KEYS[to])
            if rotate
            else dataclasses.replace(opened(seq, previous), account=f"a{seq}/train")
        )
        may = signer == had[-1] and not (rotate and to in had)
        try:
            chain.add(sign_entry(entry, KEYS[signer]))
            assert may
            had += [to] if rotate else []
        except FedflowError:
            assert not may
    assert [key.raw for key in chain.keys] == [KEYS[i].public.raw for i in had]
