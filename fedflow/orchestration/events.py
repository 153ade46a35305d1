"""What a coordinator tells of a job as Prefect events: for the feed of the UI and for automations.

Names, counts, codes and the noised score: the same facts the artifacts show, and nothing a site
keeps to itself. Telling is best effort. It never raises and never waits for the server, because a
round must not depend on whether somebody is told of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Literal

from prefect.events import emit_event

from fedflow.coordinator.job import Job
from fedflow.coordinator.records import RoundRecord
from fedflow.wire.codec import plain_text

JobState = Literal["started", "completed", "aborted", "failed", "cancelled"]
SiteEvent = Literal["refused", "dropped"]

JOB_EVENTS = "fedflow.job."
ROUND_COMPLETED = "fedflow.round.completed"
SITE_EVENTS = "fedflow.site."
AUDIT_EVENTS = "fedflow.audit."

#: Labels of an event are cut here: an event has a size limit, a cohort does not.
MOST_LABELS = 100
_MOST_REASON = 300  # bytes

_log = logging.getLogger(__name__)


async def announce_job(job: Job, state: JobState, reason: str = "") -> None:
    """``fedflow.job.<state>``: a job began or ended, and the public reason of its end."""
    payload: dict[str, Any] = {
        "job": job.id,
        "state": state,
        "plan": job.plan.plan.name,
        "sites": len(job.roster),
        "rounds": job.plan.plan.rounds,
    }
    if reason:
        payload["reason"] = plain_text(reason, _MOST_REASON)
    tell(f"{JOB_EVENTS}{state}", job_resource(job.id), payload)


async def announce_round(job: Job, record: RoundRecord) -> None:
    """``fedflow.round.completed``: who took part, who did not and by which code, and the score."""
    payload: dict[str, Any] = {
        "job": job.id,
        "round": record.number,
        "rounds": job.plan.plan.rounds,
        "sites": len(record.sites),
        "attempts": record.attempts,
        "seconds": round(record.seconds, 3),
        "dropped": _some(record.dropped),
        "absent": _some(record.absent),
        "refused": {site: code_of(record.refused[site]) for site in _some(record.refused)},
    }
    if record.score is not None:
        payload |= {"metric": record.metric, "score": record.score}
        payload["score_stderr"] = record.score_stderr
        if record.personalised is not None:
            payload["personalised"] = record.personalised
    tell(ROUND_COMPLETED, job_resource(job.id), payload)


async def announce_site(job: Job, site: str, what: SiteEvent, number: int, code: str) -> None:
    """``fedflow.site.refused`` or ``.dropped``: a site's part in one round, and the code of why."""
    code = code_of(code)
    payload = {"job": job.id, "site": site, "round": number, "code": code}
    resource = {**site_resource(site), "fedflow.code": code, "fedflow.job": job.id}
    related = [{**job_resource(job.id), "prefect.resource.role": "fedflow-job"}]
    tell(f"{SITE_EVENTS}{what}", resource, payload, related)


def job_resource(job: str) -> dict[str, str]:
    """How events name a job."""
    return {"prefect.resource.id": f"fedflow.job.{job}", "prefect.resource.name": job}


def site_resource(site: str) -> dict[str, str]:
    """How events name a site: the same resource as its budget alarms."""
    return {"prefect.resource.id": f"fedflow.site.{site}", "prefect.resource.name": site}


def code_of(reason: str) -> str:
    """The code that leads a reason such as ``budget-exhausted: …``; only the code is told."""
    return plain_text(reason.split(":", 1)[0], 64)


def tell(
    event: str,
    resource: dict[str, str],
    payload: dict[str, Any],
    related: list[dict[str, str]] | None = None,
) -> None:
    """Hand an event to Prefect's sender, which adds flow run, deployment and tags by itself.

    It sends from a thread of its own, so nothing here waits. Whatever fails is logged by its type.
    """
    try:
        emit_event(event, resource=resource, payload=payload, related=related or [])
    except Exception as error:
        _log.debug("the event %s was not sent: %s", event, type(error).__name__)


def _some(labels: Iterable[str]) -> list[str]:
    return sorted(labels)[:MOST_LABELS]
