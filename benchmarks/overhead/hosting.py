"""Many sites in one process, for more of them than this machine has memory for as processes.

Each site is its own folder, key, ledger and session, as in an agent without Prefect. What it lacks
of a real one is a process of its own, a worker, and the training process: training is done here.

    python -m benchmarks.overhead.hosting JOB SITE_FOLDER...
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from fedflow.exchange import open_exchange
from fedflow.privacy.ledger import Ledger
from fedflow.site.config import open_site
from fedflow.site.round import SiteServices
from fedflow.site.session import Session
from fedflow.site.trainer import Trained, load, perform


class InProcess:
    """Trains in this process, on data loaded once."""

    def __init__(self) -> None:
        self._loaded: Any = None

    async def run(
        self,
        task: str,
        *,
        data: Path,
        plan: bytes,
        model: bytes = b"",
        own: bytes = b"",
        **about: Any,
    ) -> Trained:
        """What one request gives."""
        request = {"task": task, "data": str(data), "plan": plan.decode(), "own": len(own), **about}
        self._loaded = self._loaded or load(about["workload"], str(data))
        return perform(request, model + own, self._loaded)


async def _never(number: int, phase: str) -> None:
    """Nobody watches."""


async def host(job: str, folders: list[Path]) -> None:
    """Run the sessions of all sites in ``folders`` until the job ends."""
    sessions, ledgers = [], []
    for folder in folders:
        site = open_site(folder)
        ledgers.append(Ledger.open(site.ledger_path, site.identity))
        services = SiteServices(
            identity=site.identity,
            exchange=open_exchange(site.exchange, site.identity),
            ledger=ledgers[-1],
            facts=ledgers[-1].facts(),
            trainer=InProcess(),
            poll_seconds=site.settings.poll_seconds,
            folder=site.path,
            spot_check_chunks=site.settings.spot_check_chunks,
        )
        sessions.append(Session(site, services, job, None, _never).run())
    for end in await asyncio.gather(*sessions):
        print(end.outcome, end.code, flush=True)
    for ledger in ledgers:
        ledger.close()


if __name__ == "__main__":
    asyncio.run(host(sys.argv[1], [Path(folder) for folder in sys.argv[2:]]))
