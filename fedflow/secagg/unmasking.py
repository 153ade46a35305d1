"""From revealed shares to secrets, and from secrets to the sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.agreement import KeyPair, clamped
from fedflow.crypto.csprng import Csprng
from fedflow.crypto.kdf import pair_mask_key, self_mask_key
from fedflow.crypto.masks import add_masks
from fedflow.crypto.shamir import Recovery, parse_share
from fedflow.errors import Aborted, Violation
from fedflow.secagg.cohort import Cohort
from fedflow.secagg.messages import PAIR_MASK, SELF_MASK, Unmask


def expected_kinds(delivered: Collection[int], survivors: Collection[int]) -> list[tuple[int, int]]:
    """Per site of U2, ascending, the one kind of share an answer carries."""
    alive = set(survivors)
    return [(site, SELF_MASK if site in alive else PAIR_MASK) for site in sorted(delivered)]


def matches(cohort: Cohort, site: int, kind: int, secret: bytes, commitment: bytes) -> bool:
    """Whether ``secret`` is what ``site`` committed to: its seed, or its private mask key."""
    if kind == SELF_MASK:
        return cohort.commitment(site, secret) == commitment
    # One form only, or a transcript could be changed where X25519 does not look.
    return secret == clamped(secret) and KeyPair(secret).public == cohort.adverts[site].mask_key


def recover_secrets(
    cohort: Cohort,
    answers: Mapping[int, Unmask],
    kinds: Collection[tuple[int, int]],
    commitments: Mapping[int, bytes],
    csprng: Csprng,
) -> tuple[dict[int, bytes], set[int]]:
    """Every site's secret from the answers (already shape-checked), each against its commitment.

    Wrong shares are left out by trying other subsets; the second value is the sites whose share
    was wrong, as sent by them or as dealt to them. Aborted ``unrecoverable``, naming the site, when
    no subset gives the secret.
    """
    shares: dict[int, dict[int, int]] = {site: {} for site, _ in kinds}
    suspects: set[int] = set()
    for responder, answer in answers.items():
        for reveal in answer.reveals:
            try:
                shares[reveal.site][responder + 1] = parse_share(reveal.share)
            except Violation:
                suspects.add(responder)
    recovery = Recovery(cohort.thresholds.shares, cohort.thresholds.colluders, csprng)
    secrets: dict[int, bytes] = {}
    for site, kind in kinds:
        commitment = commitments[site]

        def accept(
            secret: bytes, site: int = site, kind: int = kind, commitment: bytes = commitment
        ) -> bool:
            return matches(cohort, site, kind, secret, commitment)

        secret = recovery.recover(shares[site], accept)
        if secret is None:
            raise Aborted(
                "unrecoverable",
                f"the shares of site {site} do not give what it committed to:"
                " it dealt wrong shares, or too many sites answered with wrong ones",
            )
        secrets[site] = secret
    return secrets, suspects | {point - 1 for point in recovery.suspects}


def remove_masks(
    total: NDArray[np.uint32],
    cohort: Cohort,
    survivors: Collection[int],
    secrets: Mapping[int, bytes],
    threads: int = 1,
) -> None:
    """Turn the sum of masked vectors into the sum of vectors, in place.

    Removes each survivor's own mask and the masks between survivors and dropped sites: those are
    all that did not cancel.
    """
    keys, signs = [], []
    for site, secret in secrets.items():
        if site in survivors:
            keys.append(self_mask_key(secret, cohort.context, site))
            signs.append(-1)
            continue
        pair = KeyPair(secret)
        for alive in survivors:
            shared = pair.shared(cohort.adverts[alive].mask_key)
            keys.append(pair_mask_key(shared, cohort.context, site, alive))
            signs.append(-1 if site > alive else 1)
    add_masks(total, keys, signs, threads=threads)
