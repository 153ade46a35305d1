"""What to do about a finding, in one sentence for whoever has to act on it."""

from __future__ import annotations

_BY_CODE = {
    "bad-signature": (
        "Compare the keys of your roster with the fingerprints that the parties read out, then ask "
        "the signer for its own copy of this record."
    ),
    "missing": (
        "Ask the coordinator and the sites for their copies; if nobody has it, ask who could "
        "delete files in the exchange."
    ),
    "missing-order": (
        "Ask the coordinator and the sites for their copies of the missing orders: what was asked "
        "of the sites in them is unknown."
    ),
    "missing-transcript": (
        "Ask the coordinator for the transcript. Without it nobody can show what the sum was, nor "
        "that the sites settled the right number of survivors."
    ),
    "missing-vector": (
        "Ask the site for the message it kept: without it the sum cannot be recomputed."
    ),
    "no-ledger": "Ask the site for an export: fedflow ledger export.",
    "old-ledger": (
        "Ask the site for a fresh export. If that lacks the entries too, its ledger was put back "
        "to an older copy: the site must not take part until its operator has explained it."
    ),
    "rolled-back": (
        "Stop this site's part in jobs until its operator has restored the newest ledger, or has "
        "retired the key and enrolled anew: what it released in between may be uncharged."
    ),
    "uncharged-release": (
        "Treat the budget of this site as overspent by this release until its operator shows the "
        "entry in a fresh export; stop the site's part in jobs meanwhile."
    ),
    "two-histories": (
        "Stop this site's part in jobs. Ask its operator when and to whom each export was given: "
        "its signing key is used in two places, or a ledger was put back."
    ),
    "unpinned-key": (
        "Compare the new key's fingerprint with the one that the site's operator reads out, and "
        "ask the authority for a roster that lists it. If the operator does not know the key, "
        "somebody else has an old one: stop the site's part in jobs."
    ),
    "foreign-ledger": (
        "Ask the site whose ledger this is; if it says its own, ask the authority which keys it "
        "has listed for the site."
    ),
    "truncated": "Ask the site for a fresh export; if it ends the same way, ask for the database.",
    "bad-price": "Treat the account as overspent and ask which software made the entry.",
    "wrong-price": (
        "Treat the account as overspent and report the software's version to its makers: the "
        "ledger's accountant is wrong."
    ),
    "accountants-disagree": (
        "Do not rely on the smaller figure: report the software's version to its makers."
    ),
    "over-budget": "The budget does not hold: inform whoever granted it, and stop the site.",
    "wrong-event": "Treat the release as uncharged: what was paid for is not what was released.",
    "wrong-plan-charge": (
        "Treat the site's releases in this job as uncharged: it paid for another plan."
    ),
    "wrong-charge": "Treat the release as uncharged: the entry that names it is for another.",
    "wrong-survivors": (
        "Ask the site which sum it settled: the figure decides how much noise it counted on."
    ),
    "wrong-account": (
        "Ask the site's operator: people of one half of the data set may have paid for the other."
    ),
    "wrong-model": "Do not use the model: it does not follow from what the sites sent.",
    "wrong-sum": "Do not use the model: the coordinator published a sum the sites did not make.",
    "other-sum": "Do not use the model: the published sum is not the one that was announced.",
    "broken-history": (
        "Do not use models from here on before the coordinator has explained what was removed or "
        "replaced."
    ),
    "unbound-site": "Ask the site whether it agreed to this job; if so it has its own signature.",
    "bad-input": "Make the file readable for the one who runs the audit, and run it again.",
    "unreadable": "Look at the file: it may be damaged. Then run the audit again.",
    "stray-ledger": "Ask where the file comes from; it counts for nothing here.",
    "stray-object": "Ask who can write into the exchange; the file counts for nothing here.",
    "unproven-vector": "Ask who can write into the exchange; nothing that was opened hangs on it.",
    "unpublished-model": "If the job went on after it, ask the coordinator for the file.",
    "other-label": "Ask the operator which name is right; the key decides, not the name.",
}
_BY_CHECK = {
    "manifest": "Ask the authority for the manifest it signed; do not rely on this job before.",
    "countersign": "Ask the site for the signature it gave.",
    "order": "Ask the coordinator to explain the order, and the sites which one they saw.",
    "transcript": "Ask the coordinator for the transcript it signed, and the sites what they saw.",
    "sum": "Do not use the model before the sum can be recomputed.",
    "model": "Do not use the model before it can be recomputed.",
    "ledger": "Ask the site for a fresh export of its ledger.",
    "anchor": "Ask the site's operator for a fresh export, and whether a ledger was put back.",
    "release": "Ask the site's operator which entry paid for this release.",
    "epsilon": "Do not rely on the figure before it can be recomputed.",
}
_BY_SEVERITY = {
    "error": "Do not rely on this record before the party named has explained it.",
    "warning": "Ask the party named; no promise is broken.",
    "note": "Nothing to do: this is as it should be.",
}


def advice(severity: str, code: str, check: str) -> str:
    """By the finding's code, else by the check it fails, else by its severity."""
    if severity == "note":
        return _BY_CODE["no-ledger"] if code == "no-ledger" else _BY_SEVERITY["note"]
    return _BY_CODE.get(code) or _BY_CHECK.get(check) or _BY_SEVERITY[severity]
