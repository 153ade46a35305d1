"""What is counted at a site and at a coordinator, in Prometheus' form.

Label values are words of this project's own (phases, outcomes, codes): never a job's name, a path
or a sentence. A word that is not plain, or one too many, is counted as ``other``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_WORD = re.compile(r"[a-z][a-z0-9-]{0,40}")
#: Distinct words one label may take before the rest are counted together.
MOST_WORDS = 64
_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Words:
    """The values one label took so far, held to a bound."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, word: str) -> str:
        """``word``, or ``other`` when it is no plain word or there are too many already."""
        if word in self._seen:
            return word
        if not _WORD.fullmatch(word) or len(self._seen) >= MOST_WORDS:
            return "other"
        self._seen.add(word)
        return word


class SiteMetrics:
    """What a site's agent counts. The budget is not among it: see ``fedflow site status``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._word = Words()
        self._open = Gauge(
            "fedflow_site_session_open", "1 while the site is in a job", registry=registry
        )
        self._phases = Counter(
            "fedflow_site_phases_total",
            "Steps of rounds reached: admitted, training, masked, done",
            ["phase"],
            registry=registry,
        )
        self._ends = Counter(
            "fedflow_site_sessions_total",
            "Sessions that ended, by outcome and code",
            ["outcome", "code"],
            registry=registry,
        )
        self._last = Gauge(
            "fedflow_site_last_round_timestamp_seconds",
            "When a round was last finished here",
            registry=registry,
        )

    def opened(self) -> None:
        """A session begins."""
        self._open.set(1)

    def phase(self, phase: str) -> None:
        """A round reached a step."""
        self._phases.labels(self._word(phase)).inc()
        if phase == "done":
            self._last.set(time.time())

    def ended(self, outcome: str, code: str) -> None:
        """A session ended."""
        self._open.set(0)
        self._ends.labels(self._word(outcome), self._word(code or "none")).inc()


class CoordinatorMetrics:
    """What a coordinator counts, read off the events of its job."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._word = Words()
        self._rounds = Counter(
            "fedflow_coordinator_rounds_total", "Training rounds finished", registry=registry
        )
        self._orders = Counter(
            "fedflow_coordinator_orders_total", "Orders published", ["kind"], registry=registry
        )
        self._aborted = Counter(
            "fedflow_coordinator_aborted_total", "Orders without a sum", registry=registry
        )
        self._messages = Counter(
            "fedflow_coordinator_messages_total", "Messages taken", ["leg"], registry=registry
        )
        self._lost = Counter(
            "fedflow_coordinator_sites_lost_total",
            "Sites missing from a sum: dropped, refused, absent",
            ["how"],
            registry=registry,
        )
        self._survivors = Gauge(
            "fedflow_coordinator_survivors", "Sites in the last sum", registry=registry
        )
        self._seconds = Histogram(
            "fedflow_coordinator_round_seconds",
            "Seconds from order to sum",
            buckets=_SECONDS,
            registry=registry,
        )
        self._overhead = Histogram(
            "fedflow_coordinator_round_overhead_seconds",
            "Seconds of a round after the last masked update",
            buckets=_SECONDS,
            registry=registry,
        )
        self._last = Gauge(
            "fedflow_coordinator_last_round_timestamp_seconds",
            "When a round was last finished",
            registry=registry,
        )

    def observe(self, name: str, facts: Mapping[str, Any]) -> None:
        """One event of :meth:`JobRunner.event`. Unknown ones count for nothing."""
        if name == "order":
            self._orders.labels(self._word(str(facts["kind"]))).inc()
        elif name == "message":
            self._messages.labels(self._word(str(facts["leg"]))).inc()
        elif name == "aborted":
            self._aborted.inc()
        elif name == "round-done":
            self._round(facts)

    def _round(self, facts: Mapping[str, Any]) -> None:
        self._rounds.inc()
        self._survivors.set(len(facts["sites"]))
        for how in ("dropped", "refused", "absent"):
            self._lost.labels(how).inc(len(facts[how]))
        self._seconds.observe(facts["seconds"])
        self._overhead.observe(max(0.0, facts["seconds"] - facts["training_seconds"]))
        self._last.set(time.time())
