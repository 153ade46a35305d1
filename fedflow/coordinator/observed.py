"""A coordinator's metrics endpoint and log file, while it coordinates one job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from fedflow.coordinator.progress import JobProgress
from fedflow.telemetry.endpoint import Pulse, serve_metrics
from fedflow.telemetry.logs import log_to
from fedflow.telemetry.metrics import CoordinatorMetrics


@asynccontextmanager
async def observed(job: JobProgress) -> AsyncIterator[int | None]:
    """Count the job's events and write its log within the block; the port of the metrics, if any.

    InputError when the address in coordinator.toml cannot be had.
    """
    settings = job.coordinator.settings
    registry, pulse = CollectorRegistry(), Pulse()
    metrics = CoordinatorMetrics(registry)
    handler = log_to(job.coordinator.path / "coordinator.log", settings.log_format)
    beating = asyncio.create_task(pulse.beat())
    job.watchers.append(metrics.observe)
    try:
        with serve_metrics(
            settings.metrics, registry, health=pulse.complaint, ready=pulse.complaint
        ) as port:
            yield port
    finally:
        job.watchers.remove(metrics.observe)
        beating.cancel()
        logging.getLogger("fedflow").removeHandler(handler)
        handler.close()
