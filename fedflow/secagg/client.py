"""A site's part in one secure sum: a state machine without I/O.

Methods follow the table in :mod:`fedflow.secagg.states`; each ``on_...`` takes the server's bytes
and checks, in order, everything a site can check. The rules a site keeps, whatever the server says:

* It works only with a cohort of roster sites that signed their keys for this round, and only when
  the cohort is large enough by its **own** minimum and colluders.
* It masks one vector, once, and only after every share it needs opened.
* It signs at most one survivor set per context, and never one below its own minimum.
* It answers only for the set that enough survivors signed, and per site with a share of the seed or
  of the mask key, never both. The same question again gets the same bytes.

After a Violation the round is over for this site: nothing leaves any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.aead import open_sealed, seal_once
from fedflow.crypto.agreement import SUITE_X25519, KeyPair
from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity, PublicKey
from fedflow.crypto.kdf import pair_mask_key, self_mask_key, share_key
from fedflow.crypto.masks import add_masks
from fedflow.crypto.merkle import MerkleTree, root_of
from fedflow.crypto.shamir import SHARE_SIZE, parse_share, split
from fedflow.errors import Misuse, Violation
from fedflow.secagg.cohort import Cohort, check_keys, verify_cohort
from fedflow.secagg.facts import Facts
from fedflow.secagg.messages import (
    ADVERT_LABEL,
    MASKED_LABEL,
    MAX_DIMENSION,
    PAIR_MASK,
    SELF_MASK,
    SHARES_LABEL,
    SIGNED_LABEL,
    UNMASK_LABEL,
    Advert,
    Consistency,
    Dealing,
    Delivered,
    Delivery,
    Masked,
    Reveal,
    Roster,
    SealedShare,
    Shares,
    Signed,
    Survivors,
    Unmask,
    u16,
    vector_hash,
)
from fedflow.secagg.states import CLIENT, ClientEvent, ClientState, after


class _Secrets:
    """What the round's keys hang on; dropped as soon as the next leg does not need it."""

    def __init__(self, csprng: Csprng) -> None:
        self.mask = KeyPair.generate(csprng)
        self.share = KeyPair.generate(csprng)
        self.seed = csprng.bytes(32)
        self.share_agreed: dict[int, bytes] = {}
        self.mask_agreed: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return "<secret>"


def associated_data(context: bytes, dealer: int, recipient: int) -> bytes:
    """What the encryption of a share is bound to besides its key."""
    return b"share" + context + u16(dealer) + u16(recipient)


class SecAggClient:
    """One site in one round. ``state``, ``cohort``, ``delivered``, ``survivors`` may be read.

    ``round_ctx`` is the 32-byte :meth:`RoundContext.digest`; ``roster`` maps every site of the job
    to its identity key; ``dimension`` is the vector's length d. ``context`` is the 32-byte context
    of the cohort, empty until the roster arrived.
    """

    def __init__(
        self,
        *,
        round_ctx: bytes,
        index: int,
        identity: Identity,
        roster: Mapping[int, PublicKey],
        colluders: int,
        minimum: int,
        dimension: int,
        facts: Facts,
        csprng: Csprng,
    ) -> None:
        check_keys(roster)
        if roster.get(index) != identity.public:
            raise Misuse(f"the roster does not list this identity as site {index}")
        if len(round_ctx) != 32 or not 1 <= dimension <= MAX_DIMENSION:
            raise Misuse(f"a round has a 32-byte context and a dimension in 1..{MAX_DIMENSION}")
        self.state = ClientState.START
        self.context = b""
        self.cohort: tuple[int, ...] = ()
        self.delivered: tuple[int, ...] = ()
        self.survivors: tuple[int, ...] = ()
        self._round_ctx, self._index, self._identity = round_ctx, index, identity
        self._roster, self._colluders, self._minimum = dict(roster), colluders, minimum
        self._dimension, self._facts, self._csprng = dimension, facts, csprng
        self._u1: Cohort | None = None
        self._secrets: _Secrets | None = _Secrets(csprng)
        self._advert: Advert | None = None
        self._held: dict[int, tuple[bytes, bytes]] = {}
        self._signed = self._answer = b""

    def __repr__(self) -> str:
        return f"SecAggClient(site {self._index}, {self.state}, <secret>)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise Misuse("a round's secrets are not copied or pickled")

    @contextmanager
    def _step(self, event: ClientEvent) -> Iterator[None]:
        following = after(CLIENT, self.state, event)
        try:
            yield
        except BaseException:
            # Whatever went wrong, a half-done step must not be continued.
            self.state = ClientState.FAILED
            self._secrets, self._held, self._signed, self._answer = None, {}, b"", b""
            raise
        self.state = following

    def _open(self) -> tuple[Cohort, _Secrets]:
        assert self._u1 is not None
        assert self._secrets is not None
        return self._u1, self._secrets

    def advertise(self) -> bytes:
        """Leg 0: this site's two fresh public keys, signed for the round."""
        with self._step(ClientEvent.ADVERTISE):
            assert self._secrets is not None
            keys = self._secrets.mask.public, self._secrets.share.public
            body = Advert.signed(self._round_ctx, self._index, *keys)
            signature = self._identity.sign(ADVERT_LABEL, body)
            self._advert = Advert(self._index, SUITE_X25519, *keys, signature)
            return self._advert.encode()

    def on_roster(self, data: bytes) -> bytes:
        """Leg 1: check the cohort, then deal encrypted shares of both secrets to all of it."""
        with self._step(ClientEvent.ROSTER):
            adverts = Roster.decode(data).adverts
            # 1. The roster rules, by this site's own thresholds.
            u1 = verify_cohort(
                adverts,
                round_ctx=self._round_ctx,
                roster=self._roster,
                colluders=self._colluders,
                minimum=self._minimum,
            )
            # 2. This site is in it with exactly the keys it advertised.
            if u1.adverts.get(self._index) != self._advert:
                raise Violation("left-out", "the cohort lacks this site or changes its keys")
            self._u1, self.context, self.cohort = u1, u1.context, u1.members
            return self._deal().encode()

    def _deal(self) -> Shares:
        u1, secrets = self._open()
        points = [site + 1 for site in u1.members]
        threshold = u1.thresholds.shares
        seeds = split(secrets.seed, points, threshold, self._csprng)
        keys = split(secrets.mask.private, points, threshold, self._csprng)
        sealed = []
        for site, of_seed, of_key in zip(u1.members, seeds, keys, strict=True):
            if site == self._index:
                self._held[site] = of_seed, of_key
                continue
            agreed = self._agree(secrets.share, u1.adverts[site].share_key, site)
            secrets.share_agreed[site] = agreed
            # Needed only to mask, but a bad key must end the round before anyone has trained.
            secrets.mask_agreed[site] = self._agree(secrets.mask, u1.adverts[site].mask_key, site)
            key = share_key(agreed, u1.context, self._index, site)
            associated = associated_data(u1.context, self._index, site)
            sealed.append(SealedShare(site, seal_once(key, of_seed + of_key, associated)))
        commitment = u1.commitment(self._index, secrets.seed)
        root = MerkleTree([share.leaf() for share in sealed]).root
        body = Dealing.signed(u1.context, self._index, commitment, root)
        signature = self._identity.sign(SHARES_LABEL, body)
        return Shares(Dealing(self._index, commitment, root, signature), tuple(sealed))

    @staticmethod
    def _agree(own: KeyPair, peer: bytes, site: int) -> bytes:
        try:
            return own.shared(peer)
        except Violation as violation:
            raise Violation(violation.code, violation.message, blame=site) from None

    def on_delivery(self, data: bytes) -> None:
        """Leg 2: check and keep the others' shares. A bad share names its dealer (``blame``)."""
        with self._step(ClientEvent.DELIVERY):
            u1, secrets = self._open()
            delivery = Delivery.decode(data)
            # 1. It is for this site. 2. U2 is within U1 and large enough.
            if delivery.recipient != self._index:
                raise Violation("wrong-recipient", "the delivery is for another site")
            delivered = {item.dealing.site for item in delivery.items} | {self._index}
            u1.check_delivered(delivered)
            for item in delivery.items:
                self._held[item.dealing.site] = self._receive(u1, secrets, item)
            self.delivered = tuple(sorted(delivered))

    def _receive(self, u1: Cohort, secrets: _Secrets, item: Delivered) -> tuple[bytes, bytes]:
        dealer = item.dealing.site
        # 3. The dealer signed its root for this context. 4. The root covers this ciphertext.
        u1.check_dealing(item.dealing, self._roster)
        leaf = SealedShare(self._index, item.sealed).leaf()
        if root_of(leaf, *u1.position(dealer, self._index), item.path) != item.dealing.root:
            raise Violation("bad-path", f"site {dealer} did not sign the share delivered as its")
        # 5. It opens, and holds two field elements. From here the fault is the dealer's.
        key = share_key(secrets.share_agreed[dealer], u1.context, dealer, self._index)
        try:
            pair = open_sealed(key, item.sealed, associated_data(u1.context, dealer, self._index))
            of_seed, of_key = pair[:SHARE_SIZE], pair[SHARE_SIZE:]
            parse_share(of_seed)
            parse_share(of_key)
        except Violation as violation:
            message = f"site {dealer} dealt this site an unusable share: {violation.message}"
            raise Violation(violation.code, message, blame=dealer) from None
        return of_seed, of_key

    def mask(self, vector: NDArray[np.uint32], threads: int = 1) -> bytes:
        """Leg 2: the MASKED message for ``vector`` (uint32 [d]). Once only; not kept.

        Misuse for another dtype or shape, before anything is used up.
        """
        after(CLIENT, self.state, ClientEvent.MASK)
        if vector.dtype != np.uint32 or vector.shape != (self._dimension,):
            raise Misuse(f"the vector to mask is uint32 of shape ({self._dimension},)")
        with self._step(ClientEvent.MASK):
            u1, secrets = self._open()
            keys = [self_mask_key(secrets.seed, u1.context, self._index)]
            signs = [1]
            for site in self.delivered:
                if site != self._index:
                    agreed = secrets.mask_agreed[site]
                    keys.append(pair_mask_key(agreed, u1.context, self._index, site))
                    signs.append(1 if site > self._index else -1)
            masked = np.array(vector, order="C")
            add_masks(masked, keys, signs, threads=threads)
            raw = masked.tobytes()
            delivered = u1.set_hash("delivered", self.delivered)
            body = Masked.signed(u1.context, self._index, delivered, vector_hash(raw))
            signature = self._identity.sign(MASKED_LABEL, body)
            message = Masked(self._index, delivered, raw, signature).encode()
            self._facts.claim("masked", u1.context, hashlib.sha256(message).digest())
            self._secrets = None
            return message

    def on_survivors(self, data: bytes) -> bytes:
        """Leg 3: this site's signature on U3. Violation for a second, different set."""
        with self._step(ClientEvent.SURVIVORS):
            assert self._u1 is not None
            survivors = self._u1.sites(Survivors.decode(data).bitmap)
            if self._signed:
                if survivors != self.survivors:
                    raise Violation("second-survivor-set", "the server named two survivor sets")
                return self._signed
            # 1. U3 within U2 and large enough. 2. This site is in it.
            self._u1.check_survivors(self.delivered, survivors)
            if self._index not in survivors:
                raise Violation("left-out", "this site masked a vector but is not a survivor")
            digest = self._u1.set_hash("survivors", survivors)
            self._facts.claim("survivors", self.context, digest)
            body = self._u1.survivors_body(self.delivered, survivors)
            self.survivors = survivors
            signature = self._identity.sign(SIGNED_LABEL, body)
            self._signed = Signed(self._index, signature).encode()
            return self._signed

    def on_consistency(self, data: bytes) -> bytes:
        """Leg 4: once enough survivors signed the same set, one share per site of U2."""
        with self._step(ClientEvent.CONSISTENCY):
            assert self._u1 is not None
            signatures = Consistency.decode(data).signatures
            self._u1.check_signatures(signatures, self.delivered, self.survivors, self._roster)
            if self._answer:
                return self._answer
            digest = self._u1.set_hash("survivors", self.survivors)
            self._facts.claim("unmask", self.context, digest)
            reveals = tuple(self._reveal(site) for site in self.delivered)
            body = Unmask.signed(self.context, self._index, digest, reveals)
            signature = self._identity.sign(UNMASK_LABEL, body)
            self._answer = Unmask(self._index, reveals, signature).encode()
            self._held = {}
            return self._answer

    def _reveal(self, site: int) -> Reveal:
        # U2 \ U3 is computed here, so no list of the server can name a site alive and dropped.
        of_seed, of_key = self._held[site]
        if site in self.survivors:
            return Reveal(site, SELF_MASK, of_seed)
        return Reveal(site, PAIR_MASK, of_key)
