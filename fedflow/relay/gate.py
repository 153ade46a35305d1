"""Before anything of a request is used: who signed it, when, for the first time, and how often."""

from __future__ import annotations

import ipaddress
import time
from collections import deque
from collections.abc import Callable

from fedflow.errors import Refusal, Violation
from fedflow.exchange.request_signing import SCHEME, WINDOW_SECONDS, RelayRequest, read_header
from fedflow.relay.access import Party
from fedflow.relay.answer import Answer
from fedflow.relay.limits import Limits, Rates
from fedflow.relay.membership import Members
from fedflow.wire.membership import Role


class Gate:
    """Lets members in. Nothing it keeps grows with what strangers send."""

    def __init__(
        self, members: Members, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._members, self._limits, self._clock = members, limits, clock
        self._rates = Rates()
        self._seen: set[tuple[bytes, bytes]] = set()
        self._order: deque[tuple[float, tuple[bytes, bytes]]] = deque()

    async def admit(
        self, address: str, header: str | None, method: str, target: str
    ) -> tuple[Party, RelayRequest]:
        """The member whose request this is, and what it signed. :class:`Answer` 401, 403 or 429."""
        stranger = ("address", _network(address))
        wait = self._rates.delay(stranger, self._limits.stranger_rate, take=False)
        if wait:
            raise Answer(429, "too-many", "too many requests without a valid signature", wait)
        try:
            key, request = self._signed(header, method, target)
            await self._members.refresh()
            party = self.party(key)
        except Answer:
            self._rates.delay(stranger, self._limits.stranger_rate)
            raise
        wait = self._rates.delay(("member", key), self.rate(party))
        if wait:
            raise Answer(429, "too-many", "too many requests; wait a little", wait)
        self._once(key, request)
        return party, request

    def party(self, key: bytes) -> Party:
        """The member with this key, if it counts now; else :class:`Answer` 403."""
        try:
            return self._members.party(key, self._clock())
        except Refusal as error:
            raise Answer(403, error.code, error.message) from None

    def rate(self, party: Party) -> float:
        """Requests per second that a member may make."""
        many = party.role in (None, Role.COORDINATOR)
        return self._limits.coordinator_rate if many else self._limits.site_rate

    def _signed(self, header: str | None, method: str, target: str) -> tuple[bytes, RelayRequest]:
        if header is None:
            raise Answer(401, "not-signed", f"requests are signed: Authorization: {SCHEME} key=…")
        try:
            signed = read_header(header, method, target)
            skew = signed.request.time / 1000 - self._clock()
            if abs(skew) <= WINDOW_SECONDS:
                signed.verify()
                return signed.key, signed.request
        except Violation as error:
            raise Answer(401, error.code, error.message) from None
        word = "ahead of" if skew > 0 else "behind"
        raise Answer(
            401,
            "clock",
            f"the request's time is {abs(skew):.0f} s {word} the relay's, at most"
            f" {WINDOW_SECONDS:.0f} s are allowed; set the clock of this machine (NTP)",
        )

    def _once(self, key: bytes, request: RelayRequest) -> None:
        """Refuse a nonce a second time, for as long as its request's time would be accepted."""
        now = self._clock()
        while self._order and self._order[0][0] < now:
            self._seen.discard(self._order.popleft()[1])
        entry = (key, request.nonce)
        if entry in self._seen:
            raise Answer(401, "replayed", "this request was already made")
        self._seen.add(entry)
        # Two windows: the time may be one ahead, and is accepted until one after that.
        self._order.append((now + 2 * WINDOW_SECONDS, entry))


def _network(address: str) -> str:
    """What one stranger has: an IPv4 address, or a whole /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
