"""The masked vectors of one order: who left bytes, and whose bytes they provably are.

Anybody may be able to write into an exchange, so a file in a site's place proves nothing until the
site's signature over this round's context is checked.
"""

from __future__ import annotations

import hashlib

from fedflow.audit.evidence import MAX_SMALL, JobEvidence, RoundEvidence, need, site_number
from fedflow.audit.findings import Recorder
from fedflow.audit.roster import PinnedRoster
from fedflow.errors import FedflowError, Violation
from fedflow.exchange import Exchange, layout
from fedflow.secagg.cohort import verify_cohort
from fedflow.secagg.context import RoundContext
from fedflow.secagg.messages import MASKED_LABEL, Masked, Roster, vector_hash


def read_masked(
    exchange: Exchange, job: JobEvidence, found: RoundEvidence, recorder: Recorder
) -> None:
    """Collect every masked message of the round and its hash, in ``found``."""
    folder = f"{found.where}/up/masked"
    for name in exchange.list(folder):
        with recorder.examining("release", f"{folder}/{name}", 0):
            site = site_number(name, job)
            key = layout.up(job.id, found.order.sequence, "masked", site)
            data = need(exchange, key, 4 * found.order.dimension + 4096)
            found.masked[site], found.digests[site] = data, hashlib.sha256(data).digest()


def prove_masked(
    exchange: Exchange, job: JobEvidence, found: RoundEvidence, roster: PinnedRoster
) -> None:
    """Note in ``found`` which of the masked messages their sites signed for this very round.

    The vectors themselves are not needed afterwards and are let go.
    """
    context = found.context or _stated_context(exchange, job, found, roster)
    if context is not None:
        for site, data in found.masked.items():
            if _is_signed(data, context, site, roster):
                found.signed.add(site)
    found.masked.clear()


def _stated_context(
    exchange: Exchange, job: JobEvidence, found: RoundEvidence, roster: PinnedRoster
) -> bytes | None:
    """The context of a round that was aborted, from the cohort its sites were shown."""
    try:
        data = exchange.get(layout.down(job.id, found.order.sequence, "roster"), MAX_SMALL)
        if data is None:
            return None
        return verify_cohort(
            Roster.decode(data).adverts,
            round_ctx=RoundContext.of(found.order).digest(),
            roster={e.index: roster.keys[e.index] for e in job.manifest.roster},
            colluders=job.plan.cohort.colluders,
            minimum=job.plan.cohort.minimum,
        ).context
    except FedflowError:
        return None


def _is_signed(data: bytes, context: bytes, site: int, roster: PinnedRoster) -> bool:
    try:
        masked = Masked.decode(data)
        digest = vector_hash(masked.vector)
        body = Masked.signed(context, site, masked.delivered, digest)
        roster.keys[site].verify(MASKED_LABEL, body, masked.signature)
    except Violation:
        return False
    return masked.site == site
