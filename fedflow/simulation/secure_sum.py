"""One secure sum among honest parties in this process: real clients, real server, no network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.learning.plan import Plan
from fedflow.secagg.checks import SharedChecks
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.context import RoundContext
from fedflow.secagg.facts import MemoryFacts
from fedflow.secagg.server import Outcome, SecAggServer
from fedflow.wire.messages import Kind, Order


def secure_sum(
    identities: Sequence[Identity],
    plan: Plan,
    order: Order,
    words: Mapping[int, NDArray[np.uint32]],
    csprng: Csprng,
    *,
    drop: Collection[int] = (),
    server: type[SecAggServer] = SecAggServer,
) -> Outcome:
    """All five legs over ``words``, one uint32[d] by surviving site, d = ``order.dimension``.

    Sites that the order does not invite have no part in it. Those in ``drop`` deal shares and are
    never heard of again, so their masks are recovered. Public checks that every site would repeat
    with the same result are made once. ``server`` may be a class that watches what comes in.
    Aborted or Refusal when too few sites are left.
    """
    asked = {site: identities[site] for site in sorted(order.asked(range(len(identities))))}
    roster = {site: identity.public for site, identity in asked.items()}
    context, shared = RoundContext.of(order).digest(), SharedChecks()
    bits = plan.bits(Kind(order.kind))
    clients = {
        site: SecAggClient(
            round_ctx=context,
            index=site,
            identity=identity,
            roster=roster,
            colluders=plan.cohort.colluders,
            minimum=plan.cohort.minimum,
            dimension=order.dimension,
            facts=MemoryFacts(),
            csprng=csprng.child("secure aggregation"),
            suite_number=plan.suite,
            bits=bits,
            shared=shared,
        )
        for site, identity in asked.items()
    }
    collecting = server(
        round_ctx=context,
        roster=roster,
        colluders=plan.cohort.colluders,
        minimum=plan.cohort.minimum,
        dimension=order.dimension,
        suite_number=plan.suite,
        bits=bits,
    )
    for client in clients.values():
        collecting.receive(client.advertise())
    cohort = collecting.close_adverts()
    for client in clients.values():
        collecting.receive(client.on_roster(cohort))
    deliveries = collecting.close_shares()
    alive = {site: client for site, client in clients.items() if site not in drop}
    for site, client in alive.items():
        client.on_delivery(deliveries[site])
        chunks: list[bytes] = []
        header = client.mask(words[site], lambda _, chunk, into=chunks: into.append(chunk))  # type: ignore[misc]
        collecting.receive(header, chunks.__getitem__)
    survivors = collecting.close_masked()
    for client in alive.values():
        collecting.receive(client.on_survivors(survivors))
    consistency = collecting.close_signatures()
    for client in alive.values():
        collecting.receive(client.on_consistency(consistency))
    return collecting.close_unmask()
