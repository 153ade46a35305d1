"""Make a site known to a Prefect server: a work pool and a deployment, neither with any code in it.

Doing it again changes nothing, and repairs a pool whose template or a deployment whose schema is
not ours any more.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists

from fedflow.errors import InputError, Refusal
from fedflow.orchestration.configuration import (
    WORKER_TYPE,
    SessionParameters,
    base_job_template,
)
from fedflow.orchestration.scrub import scrubbed_client

SESSION_FLOW = "fedflow-site-session"

_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DESCRIPTION = (
    "One session of a federated job at this site. The site decides by its own policy and ledger; "
    "nothing configured here is executed there."
)
_TAGS = ["fedflow", "fedflow-site"]
_AT_ONCE = 50  # names in one look: a server answers with 200 things at most


def deployment_name(label: str) -> str:
    """What Prefect calls a site's sessions: ``fedflow-site-session/<label>``."""
    if not _LABEL.fullmatch(label) or label.startswith("prefect"):
        raise InputError(
            "not usable as a site label in Prefect",
            field="label",
            allowed="small letters, digits and dashes, at most 63, not starting with 'prefect'",
        )
    return f"{SESSION_FLOW}/{label}"


class Known(NamedTuple):
    """What a server holds: our flow's id, and the pools and deployments with some sites' names."""

    flow: UUID
    pools: dict[str, WorkPool]
    deployments: dict[str, list[DeploymentResponse]]


async def look_up(labels: Collection[str], client: PrefectClient) -> Known:
    """What is there for ``labels``, in three requests for up to fifty of them."""
    names = sorted(labels)
    for label in names:
        deployment_name(label)
    known = Known(await client.create_flow_from_name(SESSION_FLOW), {}, {})
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        pools = WorkPoolFilter(name=WorkPoolFilterName(any_=some))
        known.pools.update(
            (pool.name, pool) for pool in await client.read_work_pools(work_pool_filter=pools)
        )
        named = DeploymentFilter(name=DeploymentFilterName(any_=some))
        for found in await client.read_deployments(deployment_filter=named):
            known.deployments.setdefault(found.name, []).append(found)
    return known


async def register_site(
    label: str, client: PrefectClient | None = None, known: Known | None = None
) -> UUID:
    """Create or repair the work pool ``label`` and its session deployment; the deployment's id.

    ``known`` is what was found for it a moment ago: what is right already takes no request then.
    Raises Refusal "wrong-pool" when a pool of that name belongs to another worker type.
    """
    if client is None:
        async with scrubbed_client() as own:
            return await register_site(label, own, known)
    deployment_name(label)
    known = known or await look_up([label], client)
    await _pool(label, known, client)
    # an upsert keeps fields it is not given, such as pull steps somebody added: start afresh then
    for found in known.deployments.get(label, ()):
        if found.work_pool_name == label and _foreign(found):
            await client.delete_deployment(found.id)
        elif found.flow_id == known.flow and _as_made(found, label):
            return found.id
    return await client.create_deployment(
        known.flow,
        name=label,
        work_pool_name=label,
        description=_DESCRIPTION,
        tags=_TAGS,
        parameter_openapi_schema=SessionParameters.model_json_schema(),
        enforce_parameter_schema=True,
    )


async def _pool(label: str, known: Known, client: PrefectClient) -> None:
    pool = known.pools.get(label)
    if pool is None:
        wanted = WorkPoolCreate(
            name=label,
            type=WORKER_TYPE,
            base_job_template=base_job_template(),
            description="A fedflow site. Start its worker with --type fedflow.",
        )
        try:
            pool = await client.create_work_pool(wanted)
        except ObjectAlreadyExists:  # the site's worker was faster
            pool = await client.read_work_pool(label)
    if pool.type != WORKER_TYPE:
        raise Refusal(
            "wrong-pool",
            f"work pool {label!r} exists and has type {pool.type!r}: remove it or rename the site",
        )
    if pool.base_job_template != base_job_template():
        await client.update_work_pool(label, WorkPoolUpdate(base_job_template=base_job_template()))


def _foreign(found: DeploymentResponse) -> bool:
    return any((found.pull_steps, found.entrypoint, found.path, found.job_variables))


def _as_made(found: DeploymentResponse, label: str) -> bool:
    """Whether an upsert would change nothing."""
    return (
        found.work_pool_name == label
        and found.enforce_parameter_schema
        and found.parameter_openapi_schema == SessionParameters.model_json_schema()
        and not found.parameters
        and found.description == _DESCRIPTION
        and set(found.tags) == set(_TAGS)
    )
