import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sample_facts import sample_facts

from fedflow.report import words
from fedflow.report.facts import summarise
from fedflow.report.html import render_html
from fedflow.report.tables import print_summary


def shown(facts):
    out = io.StringIO()
    print_summary(facts, Console(file=out, width=140, color_system=None))
    return out.getvalue()


def test_tables_show_the_same_facts_as_the_report():
    text = shown(sample_facts())
    for part in (
        "0.691",
        "0.700",
        "0.698",
        "0.672",
        "+0.019",
        "2.91",
        "lost site-4 (masks recovered)",
        "site-6 refused: budget exhausted",
        "audit verified",
        "/tmp/fedflow-demo/report.html",
    ):
        assert part in text


def test_bare_and_hostile_facts_do_not_break_the_terminal():
    assert "audit not run" in shown({"job": "bare"})
    facts = sample_facts(1)
    facts["auc_alone"] = {"[bold red]x[/]": 0.5}
    facts["rounds"][0]["refused"] = {"[link=http://x]y": "[/]"}
    text = shown(facts)
    assert "[bold red]x[/] alone" in text
    assert "[link=http://x]y refused: [/]" in text


def test_summary_counts():
    facts = sample_facts()
    facts["rounds"][2]["aborted"] = True
    s = summarise(facts)
    assert (s.completed, s.aborted, s.planned, s.absences) == (13, 1, 14, 2)
    assert round(s.gain, 6) == 0.019
    assert s.worst_epsilon == max(facts["epsilon_spent"].values())


@given(st.floats(0, 1e6))
def test_rounding_never_flatters(value):
    assert float(words.epsilon(value)) >= value - 1e-8
    assert float(words.left(value)) <= value + 1e-8


def test_words():
    assert words.delta(1e-5) == "10⁻⁵"
    assert words.delta(2e-6) == "2·10⁻⁶"
    assert words.delta(1.25e-5) == "1.25e-05"
    assert words.epsilon(2.9001) == "2.91"
    assert words.epsilon(2.9) == "2.90"
    assert words.left(0.129) == "0.12"
    assert words.seconds(0.25) == "250 ms"
    assert words.seconds(125) == "2 min 05 s"
    assert words.size(13240) == "13.2 kB"
    assert words.seconds(0.9996) == "1.0 s"
    assert words.seconds(119.96) == "1 min 59 s"
    assert words.size(999.6) == "1.0 kB"
    assert words.size(999_960) == "1.0 MB"
    assert words.names(["a", "b", "c"]) == "a, b and c"
    assert words.signed(-0.01) == "−0.010"


def test_scores_that_are_lower_when_better_are_compared_that_way():
    facts = sample_facts()
    facts["plan"] = facts.get("plan", {}) | {"evaluation": {"metric": "mse"}}
    facts |= {"auc_global": 0.5, "auc_alone_mean": 0.75, "auc_pooled": 0.25}
    assert summarise(facts).gain == 0.25
    text = shown(facts)
    assert "mean squared error" in text
    assert "+0.250" in text
    assert "−0.250" in text
    assert "AUC" not in text
    page = render_html(facts)
    assert "a mean squared error of 0.500, against 0.750" in page
    assert "training together pays" in page


def test_a_job_that_only_describes_has_no_score():
    facts = sample_facts()
    facts["plan"] = facts.get("plan", {}) | {"strategy": {"name": "histogram"}}
    for key in [key for key in facts if key.startswith("auc")]:
        del facts[key]
    page = render_html(facts)
    assert "Global model" not in page
    assert "How good is the model" not in page
