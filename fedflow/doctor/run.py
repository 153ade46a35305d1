"""All checks of a site, in the order in which a person would look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fedflow.doctor import local, network
from fedflow.doctor.findings import Finding, fault
from fedflow.errors import FedflowError
from fedflow.learning.plan import Plan
from fedflow.site.config import open_site


def examine(
    folder: Path, *, plan: Plan | None, prefect_api: str, headers: Mapping[str, str]
) -> Iterator[Finding]:
    """Look at the site in ``folder``; one finding after the other, as soon as each is known."""
    yield from local.check_versions()
    try:
        site = open_site(folder)
    except FedflowError as error:
        yield fault("site", error.message, "mend this first; everything else depends on it")
        return
    yield from local.check_folder(site.path)
    yield from local.check_key(site)
    yield from local.check_policy(site)
    yield from local.check_suites(site)
    yield from local.check_workloads(site)
    yield from local.check_data(site)
    if plan is not None:
        yield from local.check_plan_here(site, plan)
    yield from local.check_ledger(site)
    yield from local.check_disk(site)
    skews: dict[str, float] = {}
    yield from network.check_exchange(site, skews)
    yield from network.check_prefect(site, prefect_api, dict(headers), skews)
    yield from network.check_clock(skews)
    yield from local.check_agent(site)
