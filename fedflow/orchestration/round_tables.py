"""What artifacts say of a job: rows and Markdown from its public records. Knows no Prefect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedflow.coordinator.job import Job
from fedflow.coordinator.records import RoundRecord
from fedflow.report import words
from fedflow.report.spread import spread_lines

#: More rows than these make a page nobody reads and a database nobody wants.
MOST_ROUNDS = 300
MOST_SITES = 200
_MOST_NAMES = 8

Rows = list[dict[str, Any]]


def round_rows(records: Sequence[RoundRecord]) -> Rows:
    """The newest rounds, one row each."""
    return [
        {
            "round": r.number,
            "sites in the sum": len(r.sites),
            "dropped": _names(r.dropped),
            "refused": _reasons({site: why.split(":", 1)[0] for site, why in r.refused.items()}),
            "away": _names(r.absent),
            "resting": len(r.resting),
            "score (noised)": r.verdict,
            "seconds": round(r.seconds, 2),
            "training seconds": round(r.training_seconds, 2),
            "KB per site": round((r.bytes_per_site or 0) / 1024, 1),
            "attempts": r.attempts,
        }
        for r in records[-MOST_ROUNDS:]
    ]


def site_rows(record: RoundRecord) -> Rows:
    """One round, one row per site; the sites that are not in its sum come first."""
    found: list[tuple[str, str, str]] = []
    for site, reason in sorted(record.refused.items()):
        found.append((site, "refused", reason))
    for site in sorted(record.dropped):
        recovered = site in record.recovered
        why = "no masked update in time" if not recovered else "lost late; its masks were recovered"
        found.append((site, "dropped", why))
    found += [(site, "away", "not there when the round began") for site in sorted(record.absent)]
    resting = "not asked this time, or still training"
    found += [(site, "resting", resting) for site in sorted(record.resting)]
    found += [(site, "in the sum", "") for site in sorted(record.sites)]
    return [
        {
            "site": site,
            "part": part,
            "reason": why,
            "KB sent": round(record.bytes.get(site, 0) / 1024, 1),
        }
        for site, part, why in found[:MOST_SITES]
    ]


def somebody_missing(record: RoundRecord) -> bool:
    """Whether a site refused the round, was lost in it, or was away."""
    return bool(record.refused or record.dropped or record.absent)


def attendance(labels: Iterable[str], records: Sequence[RoundRecord]) -> Rows:
    """One row per site over all rounds: parts, reasons of refusals, bytes."""
    rows = []
    for site in sorted(labels):
        codes = Counter(r.refused[site].split(":", 1)[0] for r in records if site in r.refused)
        rows.append(
            {
                "site": site,
                "in the sum": sum(site in r.sites for r in records),
                "dropped": sum(site in r.dropped for r in records),
                "away": sum(site in r.absent for r in records),
                "resting": sum(site in r.resting for r in records),
                "refused": ", ".join(f"{code} × {n}" for code, n in codes.most_common()),
                "KB sent": round(sum(r.bytes.get(site, 0) for r in records) / 1024, 1),
            }
        )
    return rows[:MOST_SITES]


def summary(
    job: Job, records: Sequence[RoundRecord], model: str, state: str, reason: str, report: str
) -> str:
    """How a job ended, as Markdown."""
    plan, last = job.plan, next((r for r in reversed(records) if r.verdict), None)
    facts = {
        "rounds": f"{len(records)} of {plan.plan.rounds}",
        "sites": f"{len(job.labels)}; a sum opens for at least {plan.cohort.minimum}",
        "last score": "not scored"
        if last is None
        else f"{last.verdict} after round {last.number}"
        " (a noised secure sum; ± is the privacy noise)",
        "model": f"`{model}`",
        "protects": f"a {plan.privacy.unit}, noise `{plan.privacy.mechanism}`,"
        f" δ = {words.delta(plan.privacy.delta)}",
        "time in rounds": words.seconds(sum(r.seconds for r in records)),
        "sent by all sites": words.size(sum(sum(r.bytes.values()) for r in records)),
    }
    if report:
        facts["report"] = f"`{report}` in the coordinator's folder"
    lines = [f"# {job.id}: {state}", ""]
    if reason:
        lines += [f"{cell(reason)}", ""]
    first, *rest = (f"| {k} | {v} |" for k, v in facts.items())
    lines += [first, "|---|---|", *rest, ""]
    lines += ["## Sites", "", *table(attendance(job.labels.values(), records)), ""]
    if last is not None and last.fairness:
        spread = spread_lines(last.fairness)
        lines += ["## Sites by their own score", "", "```", *spread, "```", ""]
    trouble: dict[str, list[int]] = {}
    for r in records:
        if r.refused or r.dropped:
            trouble.setdefault(_words_of(r), []).append(r.number)
    if trouble:
        shown = [f"- {_rounds(numbers)}: {what}" for what, numbers in trouble.items()]
        lines += ["## Refusals and losses", "", *shown[:MOST_ROUNDS], ""]
    lines.append(
        "What each site has spent is in its own ledger, and told where it refused for that:"
        " `fedflow site status` there, `fedflow audit verify` over exported ledgers."
    )
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as a Markdown table; the first row's keys are the header."""
    if not rows:
        return ["(none)"]
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row.get(name, "")) for name in names) + " |" for row in rows]
    return lines


def cell(value: object) -> str:
    """A value as text that stays one cell and makes no markup of its own."""
    line = " ".join(str(value).split())
    for sign in "\\`*_[]<>|#":
        line = line.replace(sign, f"\\{sign}" if sign not in "<>" else f"&#{ord(sign)};")
    return line


def _rounds(numbers: Sequence[int]) -> str:
    """``round 3``, ``rounds 1 to 8``, or ``5 rounds from 1 to 8`` where some are missing."""
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"round {first}"
    whole = last - first + 1 == len(numbers)
    return f"rounds {first} to {last}" if whole else f"{len(numbers)} rounds from {first} to {last}"


def _words_of(record: RoundRecord) -> str:
    parts = [f"{cell(s)} **refused**: {cell(why)}" for s, why in sorted(record.refused.items())]
    if record.dropped:
        kept = " (masks recovered)" if record.recovered else ""
        parts.append(f"{cell(_names(record.dropped))} **dropped**{kept}")
    return "; ".join(parts[:_MOST_NAMES])


def _names(sites: Sequence[str]) -> str:
    shown, more = sorted(sites)[:_MOST_NAMES], len(sites) - _MOST_NAMES
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _reasons(refused: Mapping[str, str]) -> str:
    shown = [f"{site}: {why}" for site, why in sorted(refused.items())[:_MOST_NAMES]]
    more = len(refused) - len(shown)
    return "; ".join(shown) + (f" and {more} more" if more > 0 else "")
