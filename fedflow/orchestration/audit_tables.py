"""What an audit shows in Prefect: verdict, checks and codes, and no figure out of a ledger."""

from __future__ import annotations

from collections import Counter

from fedflow.audit.findings import AuditReport, EpsilonRow
from fedflow.orchestration.round_tables import Rows, cell, table

#: Shares of a budget that are told apart, as budget alarms do.
_STEPS = ((0.5, "more than half"), (0.25, "25 to 50 %"), (0.1, "10 to 25 %"), (0.0, "under 10 %"))
_MOST = 200


def left_in_words(row: EpsilonRow) -> str:
    """How much of an account's budget is left, in four steps; ``overspent`` below nothing."""
    share = 1.0 - row.filtered / row.budget if row.budget else 0.0
    if share < 0:
        return "overspent"
    return next((word for least, word in _STEPS if share > least), "nothing")


def budget_rows(report: AuditReport) -> Rows:
    """One row per site and account."""
    return [
        {
            "site": row.site,
            "account": row.account,
            "protects": f"a {row.unit}",
            "budget left": left_in_words(row),
        }
        for row in report.epsilons[:_MOST]
    ]


def audit_summary(report: AuditReport, missing: str | None, page: str) -> str:
    """The verdict, every check with its count, jobs, and findings by code, as Markdown."""
    ok = report.ok and missing is None
    lines = ["# Verified" if ok else "# Not verified", ""]
    if missing is not None:
        lines += [f"Job `{cell(missing)}` is **not among the verified jobs**.", ""]
    if not report.own_keys:
        lines += ["The parties' keys came with the records: they only agree with each other.", ""]
    checks = [
        {"": "passed" if c.ok else "**FAILED**", "check": c.name, "examined": c.count}
        for c in report.checks
    ]
    lines += [*table_raw(checks), ""]
    jobs = [
        {
            "job": j.job,
            "plan": j.plan,
            "sites": len(j.sites),
            "rounds planned": j.rounds,
            "sums opened": j.sums,
            "orders": j.orders,
            "ended": j.outcome or "not yet",
        }
        for j in report.jobs[:_MOST]
    ]
    lines += ["## Jobs", "", *table(jobs), ""]
    counted = Counter((f.severity, f.code, f.check, f.advice) for f in report.findings)
    order = {"error": 0, "warning": 1, "note": 2}
    findings = [
        {"": severity, "code": code, "times": times, "what to do": advice}
        for (severity, code, _, advice), times in sorted(
            counted.items(), key=lambda item: (order.get(item[0][0], 3), item[0])
        )
    ]
    if findings:
        lines += ["## Findings", "", *table(findings[:_MOST]), ""]
    if page:
        lines.append(f"All of it, with ε of every account: `{page}` in the auditor's folder.")
    return "\n".join(lines)


def table_raw(rows: Rows) -> list[str]:
    """A table whose first column is our own markup."""
    lines = table([{**row, "": ""} for row in rows])
    marks = ["", "", *(str(row[""]) for row in rows)]
    return [
        line if i < 2 else line.replace("|  |", f"| {marks[i]} |", 1)
        for i, line in enumerate(lines)
    ]
