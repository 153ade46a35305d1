"""Budget audit: the offline audit on a schedule, over signed records and the sites' own ledgers.

The auditor's folder (``FEDFLOW_AUDIT``, or ``audit`` in the coordinator's folder) holds
``roster.json``, the keys to believe, and ``ledgers/*.jsonl``, which the sites handed in. What the
ledgers say in figures stays in that folder, on the page this writes. Prefect is shown the verdict,
the checks, the codes of what was found, and how much of each budget is left in the same coarse
steps as budget alarms.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import MarkdownArtifact, TableArtifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from fedflow.audit.findings import AuditReport
from fedflow.audit.roster import load_roster
from fedflow.audit.verify import verify_exchange
from fedflow.coordinator.settings import open_coordinator
from fedflow.errors import FedflowError
from fedflow.orchestration.audit_tables import audit_summary, budget_rows
from fedflow.orchestration.events import AUDIT_EVENTS, job_resource, tell
from fedflow.orchestration.publishing import attempt, create
from flows.training import FOLDER_VARIABLE

#: Names the auditor's folder: ``roster.json``, ``ledgers/`` and, afterwards, ``report.html``.
AUDIT_VARIABLE = "FEDFLOW_AUDIT"


@flow(
    name="budget_audit",
    flow_run_name="budget audit",
    persist_result=False,
    log_prints=False,
    retries=0,
)
async def budget_audit(job: str | None = None) -> State[Any]:
    """Audit every job of the exchange and every ledger handed in; red when a promise is broken.

    ``job`` names the job the audit is for: it must be among them.
    """
    try:
        report, page = await asyncio.to_thread(_audit)
    except FedflowError as error:
        return Failed(name="Refused", message=f"{error.code}: nothing could be audited")
    except OSError:
        return Failed(message="the exchange cannot be reached")
    absent = job is not None and job not in {row.job for row in report.jobs}
    ok = report.ok and not absent
    errors = [f for f in report.findings if f.severity == "error"]
    key = f"audit-{job or 'all'}"
    text = audit_summary(report, job if absent else None, page)
    await attempt(lambda: create(MarkdownArtifact(key=key, markdown=text)))
    if rows := budget_rows(report):
        description = "What is left of each site's budgets, in the steps of budget alarms."
        table = TableArtifact(key=f"{key}-budgets", table=rows, description=description)
        await attempt(lambda: create(table))
    word = "passed" if ok else "failed"
    payload = {
        "job": job or "",
        "jobs": len(report.jobs),
        "errors": len(errors),
        "codes": sorted({f.code for f in errors})[:50],
        "own_keys": report.own_keys,
    }
    tell(f"{AUDIT_EVENTS}{word}", job_resource(job or "all"), payload)
    for finding in errors[:50]:
        get_run_logger().error("%s (%s)", finding.code, finding.check)
    if absent:
        return Failed(name="Findings", message=f"job {job} is not among the verified jobs")
    if not ok:
        codes = ", ".join(payload["codes"])  # type: ignore[arg-type]
        return Failed(name="Findings", message=f"{len(errors)} broken or unprovable: {codes}")
    return Completed(name="Verified", message=f"{len(report.jobs)} jobs, no finding is an error")


def _audit() -> tuple[AuditReport, str]:
    from fedflow.report.audit_page import write_audit  # plotly is slow to load

    coordinator = open_coordinator(Path(os.environ.get(FOLDER_VARIABLE, ".")))
    folder = Path(os.environ.get(AUDIT_VARIABLE, coordinator.path / "audit"))
    pinned = load_roster(folder / "roster.json")
    report = verify_exchange(coordinator.exchange, pinned, folder / "ledgers", own_keys=True)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = folder / "report.html"
    try:
        write_audit(report.as_dict(), page, folder=coordinator.settings.exchange, when=when)
    except OSError:
        return report, ""
    return report, page.name
