"""What a site hears of the federation's members before it agrees to a job."""

from __future__ import annotations

import asyncio
import logging

from fedflow.anchors import Anchors
from fedflow.exchange import Exchange
from fedflow.federation.members import successions
from fedflow.site.config import SiteFolder

log = logging.getLogger("fedflow.site")


async def hear_of_members(site: SiteFolder, exchange: Exchange) -> None:
    """Remember the newest list in the exchange, and which ledgers go on under new keys.

    An exchange that is down or keeps a list back leaves the site with what it knows. Refusal when
    what it knows is not by the authority it trusts.
    """
    members = site.members()
    if members is None:
        return
    known = members.newest()
    try:
        if exchange.remote:
            known = await asyncio.to_thread(members.refresh, exchange)
        else:
            known = members.refresh(exchange)
    except OSError as error:
        log.warning("no newer list of members could be looked for: %s", error)
    if known is not None and (pairs := successions(known)):
        Anchors(site.path / "anchors.sqlite").succeed(pairs)
