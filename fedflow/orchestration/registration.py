"""Make a site known to a Prefect server: a work pool and a deployment, neither with any code in it.

Doing it again changes nothing, and repairs a pool whose template or a deployment whose schema is
not ours any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

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


def deployment_name(label: str) -> str:
    """What Prefect calls a site's sessions: ``fedflow-site-session/<label>``."""
    if not _LABEL.fullmatch(label) or label.startswith("prefect"):
        raise InputError(
            "not usable as a site label in Prefect",
            field="label",
            allowed="small letters, digits and dashes, at most 63, not starting with 'prefect'",
        )
    return f"{SESSION_FLOW}/{label}"


async def register_site(label: str, client: PrefectClient | None = None) -> UUID:
    """Create or repair the work pool ``label`` and its session deployment; the deployment's id.

    Raises Refusal "wrong-pool" when a pool of that name belongs to another worker type.
    """
    if client is None:
        async with scrubbed_client() as own:
            return await register_site(label, own)
    deployment_name(label)
    await _pool(label, client)
    flow_id = await client.create_flow_from_name(SESSION_FLOW)
    # an upsert keeps fields it is not given, such as pull steps somebody added: start afresh then
    await _drop_foreign(label, client)
    return await client.create_deployment(
        flow_id,
        name=label,
        work_pool_name=label,
        description=_DESCRIPTION,
        tags=["fedflow", "fedflow-site"],
        parameter_openapi_schema=SessionParameters.model_json_schema(),
        enforce_parameter_schema=True,
    )


async def register_sites(labels: Iterable[str]) -> dict[str, UUID]:
    """Register several sites one after the other (SQLite takes one writer); ids by label."""
    async with scrubbed_client() as client:
        return {label: await register_site(label, client) for label in labels}


async def _pool(label: str, client: PrefectClient) -> None:
    wanted = WorkPoolCreate(
        name=label,
        type=WORKER_TYPE,
        base_job_template=base_job_template(),
        description="A fedflow site. Start its worker with --type fedflow.",
    )
    try:
        pool = await client.read_work_pool(label)
    except ObjectNotFound:
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


async def _drop_foreign(label: str, client: PrefectClient) -> None:
    name = DeploymentFilter(name=DeploymentFilterName(any_=[label]))
    for found in await client.read_deployments(deployment_filter=name):
        carries = (found.pull_steps, found.entrypoint, found.path, found.job_variables)
        if found.work_pool_name == label and any(carries):
            await client.delete_deployment(found.id)
