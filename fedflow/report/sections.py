"""The parts of the HTML report, top to bottom, each a function from facts to markup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedflow.report import words
from fedflow.report.facts import (
    Summary,
    better_by,
    describes,
    is_personalised,
    labels,
    metric,
    section,
    sent_per_site,
    summarise,
)
from fedflow.report.markup import Html, join, meter, pill, table, tag
from fedflow.report.spread import newest_spread, spread_lines

OK, CROSS, DOT = Html("✓"), Html("✗"), Html("–")


def heading(facts: Mapping[str, Any]) -> Html:
    """Title, one sentence of what happened, and the verdict on usefulness."""
    summary = summarise(facts)
    workload = section(facts, "plan").get("workload", "")
    task = f" on the workload {workload}" if workload else ""
    sites = len(labels(facts))
    sentence = (
        f"{words.count(sites, 'site')} trained one model together{task} in "
        f"{words.count(summary.completed, 'round')}. Records stayed at the sites; "
        "only masked, noisy sums were ever combined."
    )
    return tag(
        "header",
        tag("p", "fedflow report", cls="kicker"),
        tag("h1", facts.get("job", "unnamed job")),
        tag("p", sentence, cls="lead"),
    )


def headline(facts: Mapping[str, Any]) -> Html:
    """The tiles: quality, gain, privacy, participation, verification, time."""
    s = summarise(facts)
    tiles = [
        *(() if describes(facts) else (_quality(facts), _gain(facts, s))),
        _privacy(facts, s),
        _rounds(s),
        _audit_tile(facts),
        _time(facts, s),
    ]
    parts = [tag("div", *tiles, cls="tiles"), verdict(facts)]
    if facts.get("stopped_early"):
        line = f"The job ended before its last round: {facts['stopped_early']}"
        parts.append(tag("div", tag("p", line), cls="verdict bad"))
    return join(parts)


def verdict(facts: Mapping[str, Any]) -> Html:
    """One honest sentence: did training together pay at this privacy level?"""
    s = summarise(facts)
    auc, alone = facts.get("auc_global"), facts.get("auc_alone_mean")
    if s.gain is None:
        return Html("")
    at = f"At ε = {words.epsilon(s.worst_epsilon)}" if s.worst_epsilon is not None else "Here"
    if s.gain > 0:
        line = (
            f"{at} per {s.unit}, training together pays: the shared model reaches {_a(facts)} of "
            f"{words.auc(auc)}, against {words.auc(alone)} on average for a site that trains "
            "alone, even though the sites alone used no privacy at all."
        )
        tone = "good"
    else:
        line = (
            f"{at} per {s.unit}, training together did not pay in this run: the shared model has "
            f"{_a(facts)} of {words.auc(auc)}, against {words.auc(alone)} on average for a site "
            "that trains alone without privacy. The noise cost more than the extra data gained."
        )
        tone = "bad"
    alone_scores = (facts.get("auc_alone") or {}).items()
    worse = [n for n, v in alone_scores if auc is not None and metric(facts).better(v, auc)]
    if worse and s.gain > 0:
        line += f" Alone and without privacy, {words.names(sorted(worse))} did better still."
    return tag("div", tag("p", line), cls=f"verdict {tone}")


def _a(facts: Mapping[str, Any]) -> str:
    label = metric(facts).label
    return f"{'an' if label[0].lower() in 'aeiou' else 'a'} {label}"


def _tile(name: str, value: str, detail: str, tone: str = "") -> Html:
    return tag(
        "div",
        tag("div", name, cls="name"),
        tag("div", value, cls="value"),
        tag("div", detail, cls="detail"),
        cls=f"tile {tone}".strip(),
    )


def _quality(facts: Mapping[str, Any]) -> Html:
    pooled, label = facts.get("auc_pooled"), metric(facts).label
    detail = f"pooled without privacy: {words.auc(pooled)}" if pooled is not None else label
    return _tile(f"Global model, {label}", words.auc(facts.get("auc_global")), detail)


def _gain(facts: Mapping[str, Any], s: Summary) -> Html:
    tone = "" if s.gain is None else ("good" if s.gain > 0 else "bad")
    detail = f"{metric(facts).label}, against the mean site"
    return _tile("Gain over a site alone", words.signed(s.gain), detail, tone)


def _privacy(facts: Mapping[str, Any], s: Summary) -> Html:
    budget, delta = facts.get("epsilon_budget"), facts.get("delta")
    parts = [f"of {words.epsilon(budget)} allowed per {s.unit}" if budget is not None else ""]
    parts.append(f"δ = {words.delta(delta)}" if delta is not None else "")
    over = s.worst_epsilon is not None and budget is not None and s.worst_epsilon > budget
    return _tile(
        "Privacy spent, ε",
        words.epsilon(s.worst_epsilon),
        ", ".join(p for p in parts if p),
        "bad" if over else "",
    )


def _rounds(s: Summary) -> Html:
    value = f"{s.completed}" + (f" / {s.planned}" if s.planned is not None else "")
    parts = []
    if s.absences:
        parts.append(words.count(s.absences, "absence") + " survived")
    if s.aborted:
        parts.append(f"{s.aborted} aborted")
    short = s.planned is not None and s.completed < int(s.planned)
    return _tile(
        "Rounds completed",
        value,
        ", ".join(parts) or "every site, every round",
        "bad" if short else "",
    )


def _audit_tile(facts: Mapping[str, Any]) -> Html:
    ok = facts.get("audit_ok")
    if ok is None:
        return _tile("Independent audit", "not run", "fedflow audit verify")
    checks = (facts.get("audit") or {}).get("checks") or ()
    total = sum(int(c.get("count", 0)) for c in checks)
    if ok:
        detail = f"{total:,} checks, offline" if total else "offline, no server needed"
        return _tile("Independent audit", "verified", detail, "good")
    return _tile("Independent audit", "failed", "see the findings below", "bad")


def _time(facts: Mapping[str, Any], s: Summary) -> Html:
    detail = ""
    if s.mean_round_seconds is not None:
        detail = f"{words.seconds(s.mean_round_seconds)} per round"
        if s.mean_training_seconds is not None:
            detail += f", {words.seconds(s.mean_training_seconds)} of it training"
    return _tile("Time", words.seconds(facts.get("seconds_total")), detail)


def quality(facts: Mapping[str, Any]) -> Html:
    """The comparison table: global model, pooled, federated without privacy, sites alone."""
    if describes(facts):
        return Html("")
    auc, s = facts.get("auc_global"), summarise(facts)
    spent = f"ε ≤ {words.epsilon(s.worst_epsilon)} per {s.unit}"
    personal = facts.get("auc_personalised")
    own = [] if personal is None else [("Each site's own model", spent, personal)]
    rows: list[tuple[str, str, Any]] = [
        ("Global model of this job", spent, auc),
        *own,
        ("All data in one place", "none", facts.get("auc_pooled")),
        ("Federated, same rounds, no noise", "none", facts.get("auc_federated_no_privacy")),
        ("Site alone, mean", "none", facts.get("auc_alone_mean")),
    ]
    alone = facts.get("auc_alone") or {}
    rows += [(f"Site alone: {label}", "none", value) for label, value in alone.items()]
    body = [
        (
            who,
            privacy,
            words.auc(v),
            DOT if i == 0 or v is None or auc is None else words.signed(better_by(facts, auc, v)),
        )
        for i, (who, privacy, v) in enumerate(rows)
        if v is not None or i == 0
    ]
    head = [
        ("Model", ""),
        ("Privacy", ""),
        (metric(facts).label, "n"),
        ("Global model is better by", "n"),
    ]
    note = (
        "All rows are scored on the same held-out people. The global model's score in the plot "
        "comes from a noised sum and carries its error bar; baselines use no privacy and exist for "
        "comparison only."
    )
    return join(
        [
            tag("h2", "How good is the model?"),
            tag("p", note, cls="note"),
            table(head, body, ours=[0]),
        ]
    )


def budgets(facts: Mapping[str, Any]) -> Html:
    """Privacy per site: spent, left, and the tighter figure of the second accountant."""
    spent, left = facts.get("epsilon_spent") or {}, facts.get("epsilon_left") or {}
    second, budget = facts.get("epsilon_pld") or {}, facts.get("epsilon_budget")
    prints = {s.get("label"): s.get("fingerprint", "") for s in facts.get("sites") or ()}
    attended = dict.fromkeys(labels(facts), 0)
    for r in facts.get("rounds") or ():
        for n in () if r.get("aborted") else r.get("sites") or ():
            attended[n] = attended.get(n, 0) + 1
    rows = []
    for label in labels(facts):
        share = (spent[label] / budget) if label in spent and budget else 0.0
        rows.append(
            (
                label,
                tag("code", prints.get(label, "")),
                attended.get(label, 0),
                words.epsilon(spent.get(label)),
                meter(share),
                words.left(left.get(label)),
                words.epsilon(second.get(label)),
            )
        )
    head = [
        ("Site", ""),
        ("Key fingerprint", ""),
        ("Rounds", "n"),
        ("ε spent", "n"),
        ("of the budget", ""),
        ("ε left", "n"),
        ("ε, second accountant", "n"),
    ]
    note = (
        "“Spent” is what the site's own filter enforces, by Rényi accounting at an order fixed "
        "in advance. The second accountant (privacy loss distributions) is tighter and "
        "independent; it is shown as a check and never refunds anything. What an aborted round "
        "reserved stays spent."
    )
    return join([tag("h2", "Privacy, site by site"), tag("p", note, cls="note"), table(head, rows)])


def rounds(facts: Mapping[str, Any]) -> Html:
    """Round by round: who took part, score, time and bytes."""
    who, own = labels(facts), ("personalised",) if is_personalised(facts) else ()
    head = [
        ("Round", "n"),
        *((n, "c") for n in who),
        (metric(facts).label, "n"),
        *((name.capitalize(), "n") for name in own),
        ("Time", "n"),
        ("Training", "n"),
        ("Sent per site", "n"),
        ("Result", ""),
    ]
    rows = []
    for r in facts.get("rounds") or ():
        result = pill("aborted", "bad") if r.get("aborted") else pill("done", "good")
        reasons = [r.get("reason") or ""]
        reasons += [f"{n} refused: {why}" for n, why in (r.get("refused") or {}).items()]
        shown = "; ".join(x for x in reasons if x)
        if shown:
            result = join([result, " ", shown])
        rows.append(
            (
                r.get("number", ""),
                *(_presence(r, n) for n in who),
                words.auc(r.get("score")),
                *(words.auc(r.get(name)) for name in own),
                words.seconds(r.get("seconds")),
                words.seconds(r.get("training_seconds")),
                words.size(sent_per_site(r)),
                result,
            )
        )
    legend = tag(
        "p",
        tag("span", OK, cls="mark good"),
        " in the sum\u2003\u2003",
        tag("span", CROSS, cls="mark bad"),
        " dropped out; the round completed without it\u2003\u2003",
        tag("span", "R", cls="mark warn"),
        " refused by its own policy or budget\u2003\u2003",
        tag("span", DOT, cls="mark"),
        " not there when the round began, or not asked",
        cls="note",
    )
    parts = [tag("h2", "Round by round"), legend, table(head, rows)]
    if lines := spread_lines(newest_spread(facts.get("rounds") or ())):
        parts += [tag("h2", f"Sites by their own {metric(facts).label}")]
        parts += [tag("pre", "\n".join(lines))]
    return join(parts)


def _presence(r: Mapping[str, Any], label: str) -> Html:
    if label in (r.get("refused") or {}):
        return tag("span", "R", cls="mark warn")
    if label in (r.get("dropped") or ()):
        return tag("span", CROSS, cls="mark bad")
    if label in (r.get("sites") or ()):
        return tag("span", OK, cls="mark good")
    return DOT
