"""What processes say of themselves: true, bounded, and nothing private."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import urllib.error
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from fedflow.coordinator.observed import observed
from fedflow.errors import InputError
from fedflow.telemetry import endpoint
from fedflow.telemetry.endpoint import Pulse, serve_metrics
from fedflow.telemetry.logs import JsonFormatter, log_to
from fedflow.telemetry.metrics import MOST_WORDS, CoordinatorMetrics, SiteMetrics, Words

ROUND = {
    "number": 3,
    "sites": ["alpha", "beta", "delta"],
    "dropped": ["gamma"],
    "refused": {"omega": "policy: the words of a site"},
    "absent": [],
    "seconds": 1.5,
    "training_seconds": 1.25,
    "score": 0.7312,
    "bytes": {"alpha": 1234567},
}


def text_of(registry):
    return generate_latest(registry).decode()


def fetch(port, path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_site_counts_phases_and_sessions():
    registry = CollectorRegistry()
    metrics = SiteMetrics(registry)
    metrics.opened()
    for phase in ("admitted", "training", "masked", "done", "admitted"):
        metrics.phase(phase)
    assert registry.get_sample_value("fedflow_site_session_open") == 1
    metrics.ended("refused", "budget-exhausted")
    value = registry.get_sample_value
    assert value("fedflow_site_session_open") == 0
    assert value("fedflow_site_phases_total", {"phase": "admitted"}) == 2
    ended = {"outcome": "refused", "code": "budget-exhausted"}
    assert value("fedflow_site_sessions_total", ended) == 1
    assert abs(value("fedflow_site_last_round_timestamp_seconds") - time.time()) < 60


def test_a_coordinator_counts_its_events():
    registry = CollectorRegistry()
    metrics = CoordinatorMetrics(registry)
    metrics.observe("order", {"kind": "train", "round": 3})
    for _ in range(3):
        metrics.observe("message", {"leg": "masked", "site": "alpha"})
    metrics.observe("aborted", {"reason": "patient 42"})
    metrics.observe("round-done", ROUND)
    metrics.observe("an event of tomorrow", {})
    value = registry.get_sample_value
    assert value("fedflow_coordinator_orders_total", {"kind": "train"}) == 1
    assert value("fedflow_coordinator_messages_total", {"leg": "masked"}) == 3
    assert value("fedflow_coordinator_aborted_total") == 1
    assert value("fedflow_coordinator_rounds_total") == 1
    assert value("fedflow_coordinator_survivors") == 3
    assert value("fedflow_coordinator_sites_lost_total", {"how": "refused"}) == 1
    assert value("fedflow_coordinator_round_overhead_seconds_sum") == 0.25


def test_nothing_of_a_round_but_counts_is_exposed():
    registry = CollectorRegistry()
    CoordinatorMetrics(registry).observe("round-done", ROUND)
    text = text_of(registry)
    for private in ("alpha", "omega", "words of a site", "0.7312", "1234567"):
        assert private not in text


@given(st.lists(st.text(max_size=50), max_size=200))
def test_label_values_are_few_plain_words(words):
    word = Words()
    values = {word(each) for each in words}
    assert len(values) <= MOST_WORDS + 1
    assert all(re.fullmatch("[a-z][a-z0-9-]{0,40}", value) for value in values)


def test_a_label_never_takes_endless_values():
    word = Words()
    assert len({word(f"code-{n}") for n in range(1000)}) == MOST_WORDS + 1
    assert word("code-1") == "code-1"


def test_the_endpoint_answers_and_says_what_is_wrong():
    registry = CollectorRegistry()
    SiteMetrics(registry).opened()
    wrong = {"health": None, "ready": "the agent is starting"}
    with serve_metrics(
        "127.0.0.1:0", registry, health=lambda: wrong["health"], ready=lambda: wrong["ready"]
    ) as port:
        assert "fedflow_site_session_open 1.0" in fetch(port, "/metrics")[1]
        assert fetch(port, "/healthz") == (200, "ok\n")
        assert fetch(port, "/readyz") == (503, "the agent is starting\n")
        wrong["ready"] = None
        assert fetch(port, "/readyz")[0] == 200
        assert fetch(port, "/metrics/../../etc/passwd")[0] == 404
        assert fetch(port, "/metrics?name=x")[0] == 404
    with pytest.raises(OSError):
        fetch(port, "/healthz")


def test_no_address_serves_nothing():
    with serve_metrics("", CollectorRegistry(), health=str, ready=str) as port:
        assert port is None


def test_an_address_in_use_is_said_so():
    with serve_metrics("127.0.0.1:0", CollectorRegistry(), health=str, ready=str) as port:
        again = serve_metrics(f"127.0.0.1:{port}", CollectorRegistry(), health=str, ready=str)
        with pytest.raises(InputError, match="cannot listen there"), again:
            pass
    out_of_range = serve_metrics("127.0.0.1:99999", CollectorRegistry(), health=str, ready=str)
    with pytest.raises(InputError), out_of_range:
        pass


async def test_a_loop_that_stands_still_is_not_healthy(monkeypatch):
    pulse = Pulse()
    monkeypatch.setattr(endpoint, "_BEAT_SECONDS", 0.01)
    beating = asyncio.create_task(pulse.beat())
    await asyncio.sleep(0.05)
    assert pulse.complaint() is None
    monkeypatch.setattr(endpoint, "STALLED_SECONDS", 0.2)
    time.sleep(0.3)  # the loop does not turn
    complaint = pulse.complaint()
    assert complaint is not None
    assert "no progress" in complaint
    await asyncio.sleep(0.05)
    assert pulse.complaint() is None
    beating.cancel()


def test_json_lines_hold_one_record_each():
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("fedflow.site", logging.ERROR, "x", 1, "order %d", (7,), info)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    read = json.loads(line)
    assert (read["level"], read["logger"], read["message"]) == ("error", "fedflow.site", "order 7")
    assert "two\nlines" in read["error"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_file_is_the_operators_alone(tmp_path, form):
    path = tmp_path / "agent.log"
    handler = log_to(path, form)
    try:
        logging.getLogger("fedflow.site").info("hello")
    finally:
        logging.getLogger("fedflow").removeHandler(handler)
        handler.close()
    assert path.stat().st_mode & 0o077 == 0
    assert path.read_text().rstrip().endswith('"message": "hello"}' if form == "json" else "hello")


async def test_a_coordinators_events_are_counted_and_logged(tmp_path):
    class Settings:
        metrics, log_format = "127.0.0.1:0", "json"

    class Coordinator:
        path, settings = tmp_path, Settings

    class Job:
        coordinator = Coordinator
        watchers = []  # noqa: RUF012

    async with observed(Job) as port:
        for watcher in Job.watchers:
            watcher("round-done", ROUND)
        logging.getLogger("fedflow.coordinator").warning("the sum of order 3 is not taken")
        text = (await asyncio.to_thread(fetch, port, "/metrics"))[1]
        assert "fedflow_coordinator_rounds_total 1.0" in text
        assert (await asyncio.to_thread(fetch, port, "/readyz"))[0] == 200
    assert Job.watchers == []
    line = json.loads((tmp_path / "coordinator.log").read_text())
    assert line["message"] == "the sum of order 3 is not taken"
