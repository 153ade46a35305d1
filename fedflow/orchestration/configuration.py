"""What a site accepts from a Prefect server: a job's name and a manifest's hash. Nothing else.

Prefect's own configuration class fills the server's templates from the worker's environment and
sends the result back as look-ups, which lets a server read a site's variables. Ours never calls it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from prefect.workers.base import BaseJobConfiguration
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from fedflow.errors import InputError, Refusal
from fedflow.site.socket_messages import JobId, ManifestHex

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

WORKER_TYPE = "fedflow"

_RUN_FIELDS = {
    "job_variables": "job variables",
    "infrastructure_document_id": "an infrastructure block",
}
_DEPLOYMENT_FIELDS = {
    **_RUN_FIELDS,
    "pull_steps": "pull steps",
    "entrypoint": "an entry point",
    "path": "a path",
    "storage_document_id": "a storage block",
}


class SessionParameters(BaseModel):
    """All parameters of a site session, published as the deployment's schema too."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    job: JobId
    manifest: ManifestHex


def base_job_template() -> dict[str, Any]:
    """The work pool's template: the API itself then answers 422 to any job variable."""
    return {
        "job_configuration": {"managed_by": "fedflow-site"},
        "variables": {"type": "object", "properties": {}, "additionalProperties": False},
    }


class FedflowJobConfiguration(BaseJobConfiguration):
    """An empty configuration that only remembers what the server tried to push."""

    _pushed: list[str] = PrivateAttr(default_factory=list)

    @property
    def pushed(self) -> tuple[str, ...]:
        """In plain words, what the server sent that no site accepts."""
        return tuple(self._pushed)

    @classmethod
    async def from_template_and_values(
        cls,
        base_job_template: dict[str, Any],
        values: dict[str, Any],
        client: PrefectClient | None = None,
    ) -> Self:
        """An empty configuration, whatever the template says."""
        return cls()

    @classmethod
    async def resolve_for_flow_run(
        cls,
        flow_run: FlowRun,
        *,
        client: PrefectClient,
        work_pool: WorkPool,
        worker_name: str,
        worker_id: UUID | None = None,
        deployment: DeploymentResponse | None = None,
    ) -> Self:
        """Note what the run, its deployment and the pool carry; use none of it."""
        self = cls()
        self._related_objects = {"flow-run": flow_run}
        if deployment is None and flow_run.deployment_id is not None:
            deployment = await client.read_deployment(flow_run.deployment_id)
        found = {text for name, text in _RUN_FIELDS.items() if getattr(flow_run, name, None)}
        found |= {text for name, text in _DEPLOYMENT_FIELDS.items() if getattr(deployment, name, 0)}
        if work_pool.base_job_template != base_job_template():
            found.add("a changed job template")
        self._pushed = sorted(found)
        return self

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: Prefect would copy its settings, API key included, into ``env``."""


def authorise(flow_run: FlowRun, configuration: FedflowJobConfiguration) -> SessionParameters:
    """The session a run asks for, or a Refusal in words that repeat nothing the server wrote."""
    if configuration.pushed:
        raise Refusal(
            "pushed-configuration",
            f"this site accepts no configuration from a server, and got "
            f"{', '.join(configuration.pushed)}",
        )
    try:
        return SessionParameters.model_validate(flow_run.parameters)
    except ValidationError as exc:
        problems = sorted({str(error["type"]) for error in exc.errors()})[:5]
        raise Refusal(
            "bad-parameters",
            "a site session takes exactly a job name and a manifest hash: " + ", ".join(problems),
        ) from None


def socket_path() -> str:
    """Where the site daemon is: ``$FEDFLOW_SITE_SOCKET``, which only the site sets."""
    path = os.environ.get("FEDFLOW_SITE_SOCKET", "")
    if not path:
        raise InputError(
            "set it to the socket of the site daemon",
            where="environment",
            field="FEDFLOW_SITE_SOCKET",
        )
    return path
