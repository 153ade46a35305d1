"""The cohort of one round, and every rule that client, server and auditor check alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fedflow.crypto.agreement import KeyPair
from fedflow.crypto.identity import PublicKey
from fedflow.errors import Misuse, Refusal, Violation
from fedflow.secagg.messages import (
    ADVERT_LABEL,
    SHARES_LABEL,
    SIGNED_LABEL,
    Advert,
    Dealing,
    Roster,
    Signed,
    u16,
)
from fedflow.secagg.params import Thresholds
from fedflow.wire.messages import labelled_hash


def check_keys(roster: Mapping[int, PublicKey]) -> None:
    """Misuse unless indices are u16 and no two sites share an identity: one key, one vote."""
    if len(set(roster.values())) != len(roster):
        raise Misuse("two sites of the roster have the same identity key")
    if not all(0 <= index < 1 << 16 for index in roster):
        raise Misuse("a site index of the roster is not in 0..65535")


def key_of(roster: Mapping[int, PublicKey], site: int) -> PublicKey:
    """The identity key of ``site``; Violation ``not-in-roster`` for a stranger."""
    if site not in roster:
        raise Violation("not-in-roster", f"site {site} is not in the job's roster")
    return roster[site]


def check_advert(advert: Advert, round_ctx: bytes, roster: Mapping[int, PublicKey]) -> None:
    """The site is in the roster and signed these keys for this round."""
    body = Advert.signed(round_ctx, advert.site, advert.mask_key, advert.share_key)
    key_of(roster, advert.site).verify(ADVERT_LABEL, body, advert.signature)


def check_distinct_keys(adverts: Iterable[Advert]) -> None:
    """No X25519 key appears twice, in either role: a copied key would share its masks."""
    seen: set[bytes] = set()
    for advert in adverts:
        for key in (advert.mask_key, advert.share_key):
            if key in seen:
                raise Violation("repeated-key", f"site {advert.site} advertises a key seen before")
            seen.add(key)


def check_usable_keys(advert: Advert) -> None:
    """No advertised key is of low order: sites would refuse the whole roster because of it."""
    probe = KeyPair(bytes(32))
    for key in (advert.mask_key, advert.share_key):
        try:
            probe.shared(key)
        except Violation as violation:
            raise Violation(violation.code, violation.message, blame=advert.site) from None


@dataclass(frozen=True, slots=True)
class Cohort:
    """U1: the sites whose keys this round uses, and the 32-byte context all its keys depend on."""

    context: bytes
    members: tuple[int, ...]
    adverts: Mapping[int, Advert]
    thresholds: Thresholds

    def bitmap(self, sites: Collection[int]) -> bytes:
        """``sites`` as bits over the members, lowest bit first. Misuse for a non-member."""
        chosen = set(sites)
        if not chosen <= set(self.members):
            raise Misuse("a site of the set is not in the cohort")
        bits = sum(1 << i for i, site in enumerate(self.members) if site in chosen)
        return bits.to_bytes(-(-len(self.members) // 8), "little")

    def sites(self, bitmap: bytes) -> tuple[int, ...]:
        """Read :meth:`bitmap` back; Violation for another length or a bit beyond the cohort."""
        bits = int.from_bytes(bitmap, "little")
        if len(bitmap) != -(-len(self.members) // 8) or bits >> len(self.members):
            raise Violation("bad-bitmap", "the set of sites does not fit the cohort")
        return tuple(site for i, site in enumerate(self.members) if bits >> i & 1)

    def set_hash(self, label: str, sites: Collection[int]) -> bytes:
        """32-byte hash of a set of members under ``label`` (``delivered`` or ``survivors``)."""
        return labelled_hash(label, self.context + self.bitmap(sites))

    def position(self, dealer: int, recipient: int) -> tuple[int, int]:
        """Where a recipient's share is among a dealer's, and how many there are."""
        others = [site for site in self.members if site != dealer]
        return others.index(recipient), len(others)

    def commitment(self, site: int, seed: bytes) -> bytes:
        """32-byte commitment to a site's self-mask seed."""
        return labelled_hash("b", self.context + u16(site) + seed)

    def check_dealing(self, dealing: Dealing, roster: Mapping[int, PublicKey]) -> None:
        """The dealer is in the cohort and signed its commitment and root for this context."""
        if dealing.site not in self.adverts:
            raise Violation("not-in-cohort", f"site {dealing.site} is not in the cohort")
        body = Dealing.signed(self.context, dealing.site, dealing.commitment, dealing.root)
        key_of(roster, dealing.site).verify(SHARES_LABEL, body, dealing.signature)

    def check_delivered(self, delivered: Collection[int]) -> None:
        """U2 is part of U1 and large enough to leave a sum."""
        if not set(delivered) <= set(self.members):
            raise Violation("not-in-cohort", "shares were delivered from outside the cohort")
        self._enough("delivered", len(delivered))

    def check_survivors(self, delivered: Collection[int], survivors: Collection[int]) -> None:
        """U3 is part of U2 and not smaller than the smallest sum allowed."""
        if not set(survivors) <= set(delivered):
            raise Violation("bad-survivors", "a survivor never took part in this round's shares")
        self._enough("survivors", len(survivors))

    def check_signatures(
        self,
        signatures: Collection[Signed],
        delivered: Collection[int],
        survivors: Collection[int],
        roster: Mapping[int, PublicKey],
    ) -> None:
        """Enough distinct survivors signed exactly this U2 and U3."""
        signers = {signed.site for signed in signatures}
        if len(signers) != len(signatures) or not signers <= set(survivors):
            raise Violation("bad-signers", "a signature is doubled or not by a survivor")
        if len(signers) < self.thresholds.signatures:
            raise Violation(
                "too-few-signatures",
                f"{len(signers)} sites signed the survivor set,"
                f" {self.thresholds.signatures} are needed",
            )
        body = self.survivors_body(delivered, survivors)
        for signed in signatures:
            key_of(roster, signed.site).verify(SIGNED_LABEL, body, signed.signature)

    def survivors_body(self, delivered: Collection[int], survivors: Collection[int]) -> bytes:
        """What every survivor signs: exactly this U2 and U3."""
        return Signed.signed(
            self.context,
            self.set_hash("delivered", delivered),
            self.set_hash("survivors", survivors),
        )

    def _enough(self, what: str, count: int) -> None:
        if count < self.thresholds.survivors:
            raise Violation(
                "too-few-sites",
                f"{what}: {count} sites, at least {self.thresholds.survivors} are needed",
            )


def make_cohort(
    adverts: Collection[Advert], round_ctx: bytes, colluders: int, minimum: int
) -> Cohort:
    """The cohort of already checked adverts; Refusal when its size cannot protect anyone."""
    roster = Roster(tuple(sorted(adverts, key=lambda advert: advert.site)))
    return Cohort(
        labelled_hash("ctx", round_ctx + roster.encode()),
        tuple(advert.site for advert in roster.adverts),
        {advert.site: advert for advert in roster.adverts},
        Thresholds.for_cohort(len(roster.adverts), colluders, minimum),
    )


def verify_cohort(
    adverts: Collection[Advert],
    *,
    round_ctx: bytes,
    roster: Mapping[int, PublicKey],
    colluders: int,
    minimum: int,
) -> Cohort:
    """The cohort the server claims, checked by the thresholds of the party that asks.

    1. Large enough by the checker's own ``colluders`` and ``minimum``.
    2. Every advert is by a site of the roster, signed for this round.
    3. Every key is used once.
    """
    try:
        cohort = make_cohort(adverts, round_ctx, colluders, minimum)
    except Refusal as refusal:
        raise Violation(refusal.code, refusal.message) from None
    for advert in adverts:
        check_advert(advert, round_ctx, roster)
    check_distinct_keys(adverts)
    return cohort
