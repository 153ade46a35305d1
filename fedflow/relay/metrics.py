"""What a relay counts, for Prometheus. Labels are words fixed here: no job, no member, no name."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fedflow.relay.objects import Objects
from fedflow.wire.membership import Role

_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0)


class RelayMetrics:
    """The counters of one relay, in a registry of their own."""

    def __init__(self, objects: Objects) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "fedflow_relay_requests",
            "Requests answered",
            ("method", "kind", "role", "status"),
            registry=registry,
        )
        self.refused = Counter(
            "fedflow_relay_refused", "Requests refused, by reason", ("code",), registry=registry
        )
        self.bytes = Counter(
            "fedflow_relay_bytes", "Bytes of objects moved", ("direction",), registry=registry
        )
        self.seconds = Histogram(
            "fedflow_relay_request_seconds",
            "From a request's header to the end of its answer, waiting included",
            ("method",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.removed = Counter(
            "fedflow_relay_jobs_removed", "Ended jobs removed by retention", registry=registry
        )
        waiting = Gauge("fedflow_relay_waiting", "Requests that wait", registry=registry)
        waiting.set_function(lambda: objects.waiting.count)
        held = Gauge("fedflow_relay_held_bytes", "Bytes of objects in memory", registry=registry)
        held.set_function(lambda: objects.memory.held)
        serial = Gauge(
            "fedflow_relay_roster_serial", "Serial of the member list", registry=registry
        )
        serial.set_function(lambda: objects.members.roster.serial if objects.members.roster else 0)
        members = Gauge("fedflow_relay_members", "Unrevoked members", ("role",), registry=registry)
        for role in Role:
            members.labels(role.word).set_function(partial(_count, objects, role))


def _count(objects: Objects, role: Role) -> int:
    roster = objects.members.roster
    return sum(m.role == role and not m.revoked for m in roster.members) if roster else 0
