"""Removes jobs that are over and were not touched for some days: whole, and never a running one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Violation
from fedflow.exchange import layout
from fedflow.relay.metrics import RelayMetrics
from fedflow.relay.objects import Objects
from fedflow.wire.messages import JOB_ID, JobEnd
from fedflow.wire.sealed import unseal

log = logging.getLogger("fedflow.relay")

#: How often it looks (seconds).
LOOK_SECONDS = 3600.0
_DAY = 86_400.0


async def remove_old_jobs(
    objects: Objects, keep_days: float, clock: Callable[[], float] = time.time
) -> list[str]:
    """Remove every job that ended, expired or never had a manifest; what was removed.

    Each only when its newest object is older than ``keep_days``.
    """
    removed, store = [], objects.store
    for job in await store.names("jobs"):
        if not JOB_ID.fullmatch(job):
            continue
        now, root = clock(), layout.job(job)
        newest = max((stored for _, _, stored in await store.below(root)), default=now)
        if newest > now - keep_days * _DAY or not await _is_over(objects, job, now):
            continue
        objects.removing.add(job)
        try:
            await store.remove(root)
        finally:
            objects.jobs.forget(job)
            objects.quotas.forget(job)
            objects.removing.discard(job)
        removed.append(job)
        log.info("job %s is over and %.0f days old: removed", job, keep_days)
    return removed


async def _is_over(objects: Objects, job: str, now: float) -> bool:
    facts = await objects.jobs.facts(job)
    if facts is None or facts.not_after < now:
        return True
    data = await objects.store.get(layout.end(job))
    if data is None:
        return False
    try:
        unseal(JobEnd, data, PublicKey(facts.coordinator))
    except Violation:
        return False
    return True


async def keep_clean(objects: Objects, keep_days: float, metrics: RelayMetrics) -> None:
    """Look every hour until cancelled; an outage of the store is waited for."""
    while True:
        try:
            metrics.removed.inc(len(await remove_old_jobs(objects, keep_days)))
        except (OSError, Violation):
            log.warning("retention was put off", exc_info=True)
        await asyncio.sleep(LOOK_SECONDS)
