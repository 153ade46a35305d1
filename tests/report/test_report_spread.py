"""Scores of sites' own models and sites by score, where people read them."""

import io

import numpy as np
from plans import make_plan
from rich.console import Console
from sample_facts import sample_facts

from fedflow.coordinator.records import RoundRecord
from fedflow.learning.scoring import GRID
from fedflow.report.html import render_html
from fedflow.report.spread import newest_spread, spread_lines
from fedflow.report.tables import print_summary
from fedflow.wire.messages import Kind

PLAN = make_plan(
    evaluation__bins=2,
    evaluation__personalised=True,
    evaluation__fairness_bins=2,
    evaluation__fairness_between=(0.6, 0.8),
    evaluation__noise_multiplier=0.1,
)


def scored():
    total = np.zeros(PLAN.vector_length(Kind.EVALUATE, 0), np.int64)
    total[:4] = GRID * np.array([60, 40, 40, 60])
    total[4:8] = GRID * np.array([90, 10, 10, 90])
    total[8:] = 678 * np.array([2, 4])
    record = RoundRecord(number=2, sites=["a"])
    record.scored(PLAN, total.astype(np.uint32), 6)
    return record


def test_a_record_says_both_scores_and_the_sites():
    record = scored()
    assert record.verdict.startswith("AUC 0.600 ± 0.0")
    assert ", personalised 0.900 ± 0.0" in record.verdict
    assert record.fairness["between"] == [0.6, 0.8]
    assert record.fairness["sites"] == [2.0, 4.0]
    assert RoundRecord(**record.facts()) == record
    assert RoundRecord(number=1, score=0.5, score_stderr=0.1).verdict == "AUC 0.500 ± 0.100"


def test_the_histogram_is_drawn_and_says_when_it_tells_nothing():
    record = scored()
    first, second, remark = spread_lines(record.fairness)
    assert first.startswith("0.60 to 0.70  " + "█" * 12 + " ")
    assert second.startswith("0.70 to 0.80  " + "█" * 24)
    assert "4.0 ± 0.3" in second
    assert "privacy noise" in remark
    assert "tells nothing" in spread_lines(record.fairness | {"stderr": 9.0})[-1]
    assert spread_lines({}) == []
    assert newest_spread([{"fairness": {"a": 1}}, {"fairness": {}}, {}]) == {"a": 1}


def test_reports_show_them_only_where_there_are_any():
    facts = sample_facts()
    for page in (render_html(facts), summary(facts)):
        assert "ersonalised" not in page
        assert "Sites by their own" not in page
    facts["rounds"][-1] |= {k: v for k, v in scored().facts().items() if k in SHOWN}
    assert "Personalised" in render_html(facts)
    for page in (render_html(facts), summary(facts)):
        for words in ("0.900", "Sites by their own AUC", "0.70 to 0.80"):
            assert words in page


SHOWN = ("score", "personalised", "personalised_stderr", "fairness")


def summary(facts):
    out = io.StringIO()
    print_summary(facts, Console(file=out, width=200))
    return out.getvalue()
