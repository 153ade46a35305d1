"""The server's part in one secure sum: collect, forward, add. A state machine without I/O.

The server is trusted with availability only. It keeps one running sum of masked vectors and hashes,
never a vector of a site, and can neither choose thresholds nor name survivors that sites did not
sign. :meth:`SecAggServer.receive` refuses bad bytes without losing the round; each ``close_...``
ends one leg and raises Aborted when too few sites are left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import PublicKey
from fedflow.crypto.merkle import MerkleTree
from fedflow.errors import Aborted, Misuse, Refusal, Violation
from fedflow.secagg.cohort import (
    Cohort,
    check_advert,
    check_distinct_keys,
    check_keys,
    check_usable_keys,
    key_of,
    make_cohort,
)
from fedflow.secagg.messages import (
    MASKED_LABEL,
    MAX_DIMENSION,
    SIGNED_LABEL,
    UNMASK_LABEL,
    Advert,
    Consistency,
    Delivered,
    Delivery,
    Masked,
    Roster,
    Shares,
    Signed,
    Survivors,
    Unmask,
    vector_hash,
)
from fedflow.secagg.params import MAX_COHORT
from fedflow.secagg.states import COLLECTED, LEGS, SERVER, Leg, ServerEvent, ServerState, after
from fedflow.secagg.transcript import MaskedRecord, RevealedSecret, Transcript
from fedflow.secagg.unmasking import expected_kinds, recover_secrets, remove_masks

_LEG_OF_TYPE = {
    Advert.TYPE: Leg.ADVERT,
    Shares.TYPE: Leg.SHARES,
    Masked.TYPE: Leg.MASKED,
    Signed.TYPE: Leg.SIGNED,
    Unmask.TYPE: Leg.UNMASK,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished round. ``sum`` is uint32 [d] mod 2^32 over ``survivors``.

    ``suspects`` are sites that sent or dealt a wrong share without stopping the round.
    """

    sum: NDArray[np.uint32] = field(repr=False)
    cohort: tuple[int, ...]
    delivered: tuple[int, ...]
    survivors: tuple[int, ...]
    transcript: Transcript = field(repr=False)
    suspects: tuple[int, ...] = ()


class SecAggServer:
    """One round at the server. ``state``, ``cohort``, ``delivered``, ``survivors`` may be read."""

    def __init__(
        self,
        *,
        round_ctx: bytes,
        roster: Mapping[int, PublicKey],
        colluders: int,
        minimum: int,
        dimension: int,
        threads: int = 1,
    ) -> None:
        check_keys(roster)
        if len(round_ctx) != 32 or not 1 <= dimension <= MAX_DIMENSION:
            raise Misuse(f"a round has a 32-byte context and a dimension in 1..{MAX_DIMENSION}")
        self.state = ServerState.ADVERTS
        self.cohort: tuple[int, ...] = ()
        self.delivered: tuple[int, ...] = ()
        self.survivors: tuple[int, ...] = ()
        self._round_ctx, self._roster = round_ctx, dict(roster)
        self._colluders, self._minimum = colluders, minimum
        self._dimension, self._threads = dimension, threads
        self._u1: Cohort | None = None
        self._accepted: dict[Leg, dict[int, bytes]] = {leg: {} for leg in LEGS}
        self._adverts: dict[int, Advert] = {}
        self._shares: dict[int, Shares] = {}
        self._masked: dict[int, MaskedRecord] = {}
        self._signed: dict[int, Signed] = {}
        self._answers: dict[int, Unmask] = {}
        self._sum = np.zeros(dimension, np.uint32)

    def __repr__(self) -> str:
        return f"SecAggServer({self.state}, {len(self.cohort)} sites)"

    def receive(self, data: bytes) -> tuple[str, int]:
        """Take one message of a site; its leg and index. Violation for anything wrong.

        An identical copy of an accepted message is fine at any time; another message of a site
        that was already accepted is not (``duplicate``), nor is one whose leg is closed
        (``late-message``) or not open yet (``early-message``). The round goes on either way.
        """
        leg = _LEG_OF_TYPE.get(data[0]) if data else None
        if leg is None:
            raise Violation("unknown-message", "not a secure-aggregation message of a site")
        take: Mapping[Leg, Callable[[bytes], int]] = {
            Leg.ADVERT: self._take_advert,
            Leg.SHARES: self._take_shares,
            Leg.MASKED: self._take_masked,
            Leg.SIGNED: self._take_signed,
            Leg.UNMASK: self._take_unmask,
        }
        digest = hashlib.sha256(data).digest()
        for site, known in self._accepted[leg].items():
            if known == digest:
                return leg, site
        current = COLLECTED.get(self.state)
        if current is None or LEGS.index(leg) < LEGS.index(current):
            raise Violation("late-message", f"the leg '{leg}' is closed")
        if leg != current:
            raise Violation("early-message", f"the leg '{leg}' is not open yet")
        site = take[leg](data)
        self._accepted[leg][site] = digest
        return leg, site

    def missing(self) -> tuple[int, ...]:
        """The sites still awaited in the current leg, ascending."""
        leg = COLLECTED.get(self.state)
        if leg is None:
            return ()
        return tuple(s for s in sorted(self._awaited(leg)) if s not in self._accepted[leg])

    def _awaited(self, leg: Leg) -> tuple[int, ...]:
        sets = {
            Leg.ADVERT: tuple(self._roster),
            Leg.SHARES: self.cohort,
            Leg.MASKED: self.delivered,
            Leg.SIGNED: self.survivors,
            Leg.UNMASK: self.survivors,
        }
        return sets[leg]

    def _admit(self, leg: Leg, site: int) -> PublicKey:
        key = key_of(self._roster, site)
        if site not in self._awaited(leg):
            raise Violation("not-awaited", f"site {site} takes no part in the leg '{leg}'")
        if site in self._accepted[leg]:
            raise Violation("duplicate", f"site {site} already sent another '{leg}' message")
        return key

    def _cohort(self) -> Cohort:
        assert self._u1 is not None
        return self._u1

    def _take_advert(self, data: bytes) -> int:
        advert = Advert.decode(data)
        self._admit(Leg.ADVERT, advert.site)
        check_advert(advert, self._round_ctx, self._roster)
        check_distinct_keys([*self._adverts.values(), advert])
        check_usable_keys(advert)
        if len(self._adverts) >= MAX_COHORT:
            raise Violation("cohort-full", f"a cohort has at most {MAX_COHORT} sites")
        self._adverts[advert.site] = advert
        return advert.site

    def _take_shares(self, data: bytes) -> int:
        shares = Shares.decode(data)
        self._admit(Leg.SHARES, shares.site)
        self._cohort().check_dealing(shares.dealing, self._roster)
        if [share.recipient for share in shares.shares] != [
            site for site in self.cohort if site != shares.site
        ]:
            raise Violation("bad-recipients", "shares are not for exactly the rest of the cohort")
        if MerkleTree([share.leaf() for share in shares.shares]).root != shares.dealing.root:
            raise Violation("bad-root", "the signed root is not that of the shares")
        self._shares[shares.site] = shares
        return shares.site

    def _take_masked(self, data: bytes) -> int:
        masked = Masked.decode(data)
        key = self._admit(Leg.MASKED, masked.site)
        cohort = self._cohort()
        if len(masked.vector) != 4 * self._dimension:
            raise Violation("bad-length", f"a masked vector has {4 * self._dimension} bytes")
        if masked.delivered != cohort.set_hash("delivered", self.delivered):
            raise Violation("other-delivery", "the vector was masked for another set of sites")
        digest = vector_hash(masked.vector)
        body = Masked.signed(cohort.context, masked.site, masked.delivered, digest)
        key.verify(MASKED_LABEL, body, masked.signature)
        self._sum += np.frombuffer(masked.vector, "<u4")
        self._masked[masked.site] = MaskedRecord(masked.site, digest, masked.signature)
        return masked.site

    def _take_signed(self, data: bytes) -> int:
        signed = Signed.decode(data)
        key = self._admit(Leg.SIGNED, signed.site)
        body = self._cohort().survivors_body(self.delivered, self.survivors)
        key.verify(SIGNED_LABEL, body, signed.signature)
        self._signed[signed.site] = signed
        return signed.site

    def _take_unmask(self, data: bytes) -> int:
        answer = Unmask.decode(data)
        key = self._admit(Leg.UNMASK, answer.site)
        cohort = self._cohort()
        digest = cohort.set_hash("survivors", self.survivors)
        body = Unmask.signed(cohort.context, answer.site, digest, answer.reveals)
        key.verify(UNMASK_LABEL, body, answer.signature)
        kinds = [(reveal.site, reveal.kind) for reveal in answer.reveals]
        if kinds != expected_kinds(self.delivered, self.survivors):
            raise Violation("bad-reveal", "the answer is not one due share per site", answer.site)
        self._answers[answer.site] = answer
        return answer.site

    def _abort(self, code: str, reason: str) -> NoReturn:
        self.state = ServerState.FAILED
        raise Aborted(code, reason)

    def _need(self, code: str, what: str, have: int, need: int) -> None:
        if have < need:
            self._abort(code, f"{have} sites {what}; at least {need} are needed")

    def close_adverts(self) -> bytes:
        """Fix the cohort U1: the ROSTER for all its sites."""
        following = after(SERVER, self.state, ServerEvent.CLOSE_ADVERTS)
        try:
            self._u1 = make_cohort(
                self._adverts.values(), self._round_ctx, self._colluders, self._minimum
            )
        except Refusal as refusal:
            self._abort(refusal.code, refusal.message)
        self.cohort, self.state = self._u1.members, following
        return Roster(tuple(self._u1.adverts.values())).encode()

    def close_shares(self) -> dict[int, bytes]:
        """Fix U2, the sites whose shares arrived: one DELIVER message for each of them."""
        following = after(SERVER, self.state, ServerEvent.CLOSE_SHARES)
        need = self._cohort().thresholds.survivors
        self._need("too-few-shares", "dealt shares", len(self._shares), need)
        self.delivered, self.state = tuple(sorted(self._shares)), following
        items: dict[int, list[Delivered]] = {site: [] for site in self.delivered}
        for dealer in self.delivered:
            shares = self._shares[dealer]
            tree = MerkleTree([share.leaf() for share in shares.shares])
            for position, share in enumerate(shares.shares):
                if share.recipient in items:
                    items[share.recipient].append(
                        Delivered(shares.dealing, share.sealed, tree.path(position))
                    )
        return {site: Delivery(site, tuple(mine)).encode() for site, mine in items.items()}

    def close_masked(self) -> bytes:
        """Fix U3, the sites whose masked vectors arrived: the SURVIVORS message."""
        following = after(SERVER, self.state, ServerEvent.CLOSE_MASKED)
        need = self._cohort().thresholds.survivors
        self._need("too-few-vectors", "sent a masked vector", len(self._masked), need)
        self.survivors, self.state = tuple(sorted(self._masked)), following
        return Survivors(self._cohort().bitmap(self.survivors)).encode()

    def close_signatures(self) -> bytes:
        """The CONSISTENCY message: all signatures on the survivor set."""
        following = after(SERVER, self.state, ServerEvent.CLOSE_SIGNATURES)
        need = self._cohort().thresholds.signatures
        self._need("too-few-signatures", "signed the survivors", len(self._signed), need)
        self.state = following
        return Consistency(tuple(self._signed[site] for site in sorted(self._signed))).encode()

    def close_unmask(self) -> Outcome:
        """Recover the secrets, remove the masks, and write the transcript."""
        following = after(SERVER, self.state, ServerEvent.CLOSE_UNMASK)
        cohort = self._cohort()
        need = cohort.thresholds.shares
        self._need("too-few-answers", "answered the last leg", len(self._answers), need)
        try:
            secrets, suspects = recover_secrets(
                cohort,
                self._answers,
                expected_kinds(self.delivered, self.survivors),
                {site: shares.dealing.commitment for site, shares in self._shares.items()},
                Csprng.from_os(),
            )
        except Aborted as aborted:
            self._abort(aborted.code, aborted.message)
        remove_masks(self._sum, cohort, self.survivors, secrets, self._threads)
        self.state = following
        transcript = Transcript(
            round_ctx=self._round_ctx,
            dimension=self._dimension,
            adverts=tuple(cohort.adverts.values()),
            dealings=tuple(self._shares[site].dealing for site in self.delivered),
            masked=tuple(self._masked[site] for site in self.survivors),
            signatures=tuple(self._signed[site] for site in sorted(self._signed)),
            secrets=tuple(RevealedSecret(site, secrets[site]) for site in sorted(secrets)),
            sum_hash=vector_hash(self._sum.tobytes()),
        )
        return Outcome(
            self._sum,
            self.cohort,
            self.delivered,
            self.survivors,
            transcript,
            tuple(sorted(suspects)),
        )
