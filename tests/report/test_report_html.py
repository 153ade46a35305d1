import base64
import hashlib
import json
import re

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import Page
from sample_facts import sample_facts

from fedflow.report import words
from fedflow.report.html import render_html, write_report
from fedflow.report.plots import figures


@pytest.fixture(scope="module")
def page():
    return Page(render_html(sample_facts()))


def test_headline_figures_are_shown(page):
    for shown in ("0.691", "+0.019", "2.91", "14 / 14", "verified", "96.4 s", "0.700", "0.672"):
        assert shown in page.text


def test_nothing_is_loaded_from_outside(page):
    loads = {"src", "href", "srcset", "data", "poster", "action", "background", "formaction"}
    assert not [(t, a) for t, a in page.tags if loads & set(a)]
    assert {t for t, _ in page.tags}.isdisjoint(
        {"link", "iframe", "object", "embed", "base", "form"}
    )
    outside = render_html(sample_facts()).replace(page.scripts[1], "")
    assert "http://" not in outside
    assert "https://" not in outside


def test_content_policy_names_exactly_the_inlined_scripts(page):
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    allowed = re.search(r"script-src ([^;]*);", policy).group(1).split()
    assert "'unsafe-inline'" not in allowed
    assert "'unsafe-eval'" not in allowed
    hashes = {
        "'sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() + "'"
        for s in page.scripts[1:]
    }
    assert set(allowed) == hashes
    assert len(hashes) == 2


def test_plots_are_valid_and_complete(page):
    made = json.loads(page.scripts[0])
    assert list(made) == ["auc", "epsilon", "time", "bytes"]
    for name, figure in made.items():
        go.Figure(figure)  # raises on any attribute plotly does not know
        assert {"id": f"plot-{name}", "class": "plot"} in [a for _, a in page.tags]


def test_plots_say_what_the_facts_say():
    facts = sample_facts()
    made = figures(facts)
    curve = made["auc"]["data"][-1]
    seen = [r for r in facts["rounds"] if r["score"] is not None]
    assert curve["x"] == [r["number"] for r in seen]
    assert curve["y"] == [r["score"] for r in seen]
    assert curve["error_y"]["array"] == [2 * r["score_stderr"] for r in seen]
    levels = [t["y"][0] for t in made["auc"]["data"][:-1]]
    assert levels == [0.700, 0.698, 0.672]
    training, rest = made["time"]["data"]
    for t, o, r in zip(training["y"], rest["y"], facts["rounds"], strict=True):
        assert t + o == pytest.approx(r["seconds"])
    shown = {
        n
        for trace in made["epsilon"]["data"][:-1]
        for n in trace["name"].replace(" and", ",").split(", ")
    }
    assert shown == {s["label"] for s in facts["sites"]}
    assert made["epsilon"]["data"][-1]["y"] == [3.0, 3.0]
    assert sum(made["bytes"]["data"][0]["x"]) == sum(
        n for r in facts["rounds"] for n in r["bytes"].values()
    )


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def test_hostile_text_stays_text():
    facts = sample_facts(3)
    evil = facts["sites"][0]["label"]
    raw = json.dumps(facts).replace(f'"{evil}"', json.dumps(EVIL))
    facts = json.loads(raw)
    facts["job"] = facts["folder"] = facts["plan"]["plan"]["name"] = EVIL
    facts["sites"][1]["fingerprint"] = EVIL
    facts["rounds"][0].update(aborted=True, reason=EVIL, refused={EVIL: EVIL})
    facts["audit"]["findings"][0].update(sentence=EVIL, where=EVIL, severity=EVIL)
    page = Page(render_html(facts))
    assert len(page.scripts) == 3
    assert "alert" not in page.scripts[2]
    assert not [t for t, a in page.tags if t == "img" or "onerror" in a]
    assert EVIL in page.text
    # plotly draws a subset of HTML: labels in figures are escaped as well
    figures_text = page.scripts[0]
    assert "\\u003cscript" not in figures_text
    assert "\\u0026lt;script" in figures_text


def test_a_worse_model_is_said_to_be_worse():
    facts = sample_facts(3) | {"auc_global": 0.60}
    text = Page(render_html(facts)).text
    assert "did not pay" in text
    assert "together pays" not in text


def test_a_failed_audit_is_not_called_verified():
    facts = sample_facts(3)
    facts["audit_ok"] = False
    facts["audit"] = {
        "ok": False,
        "checks": [{"name": "sums", "count": 3, "ok": False}],
        "findings": [
            {
                "severity": "error",
                "code": "wrong-sum",
                "where": "round 2",
                "sentence": "The sum differs.",
            }
        ],
    }
    text = Page(render_html(facts)).text
    assert "verified" not in text
    assert "failed" in text
    assert "The sum differs." in text


def test_what_was_not_measured_is_a_dash_not_a_zero():
    text = Page(render_html({"job": "bare"})).text
    assert "not run" in text
    assert "0.000" not in text
    assert words.MISSING in text


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.sampled_from(sorted(sample_facts(2)))),
    st.sets(st.sampled_from(sorted(sample_facts(2)["rounds"][0]))),
)
def test_any_fact_may_be_missing(gone, gone_in_rounds):
    facts = {k: v for k, v in sample_facts(2).items() if k not in gone}
    for r in facts.get("rounds", ()):
        for key in gone_in_rounds - {"number"}:
            r.pop(key)
    assert render_html(facts).count("<h2>") >= 4


def test_a_score_that_is_no_number_is_a_gap():
    facts = sample_facts(3)
    facts["rounds"][0]["score"] = float("nan")
    made = json.loads(Page(render_html(facts)).scripts[0])
    assert made["auc"]["data"][-1]["y"][0] is None


def test_report_is_written_whole(tmp_path):
    path = write_report(sample_facts(2), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    write_report(sample_facts(1), path)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_job_that_ended_early_says_so_first():
    facts = {**sample_facts(), "stopped_early": "round 8: <too few> sites"}
    page = render_html(facts)
    assert "ended before its last round: round 8: &lt;too few&gt; sites" in page
    assert "ended before its last round" not in render_html(sample_facts())
