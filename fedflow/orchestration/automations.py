"""The automations fedflow ships: a coordinator that died is started again, and people are told.

They match by tag, so nothing happens to runs of other flows on the same server. What is installed
is found again by its name: installing twice changes nothing, and repairs what was edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import (
    ActionTypes,
    ChangeFlowRunState,
    PauseDeployment,
    SendNotification,
)
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from fedflow.errors import InputError
from fedflow.orchestration.budget_event import BUDGET_LOW
from fedflow.orchestration.events import JOB_EVENTS, SITE_EVENTS
from fedflow.orchestration.scrub import scrubbed_client

#: Runs with this tag are coordinators whose state survives them.
RESUME_TAG = "fedflow-resume"
PREFIX = "fedflow: "
#: Three heartbeats of 30 seconds, the fastest Prefect allows.
SILENCE_SECONDS = 90.0

_RUN = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
_SITE = ResourceSpecification({"prefect.resource.id": ["fedflow.site.*"]})
_JOB = ResourceSpecification({"prefect.resource.id": ["fedflow.job.*"]})
_TAGGED = ResourceSpecification(
    {"prefect.resource.id": [f"prefect.tag.{RESUME_TAG}"], "prefect.resource.role": ["tag"]}
)
_EACH = {"prefect.resource.id"}

Change = Literal["installed", "updated", "unchanged", "removed"]


@dataclass(frozen=True)
class Wishes:
    """What to install. ``notify`` is a notification block, ``pause`` are deployments' full names.

    Without ``notify`` nobody is told, without ``pause`` nothing is paused on a low budget.
    """

    silence: float = SILENCE_SECONDS
    notify: str | None = None
    pause: tuple[str, ...] = ()


def recovery(silence: float = SILENCE_SECONDS) -> list[AutomationCore]:
    """A coordinator that stopped to send heartbeats is ``Crashed``; one that crashed is retried."""
    return [
        AutomationCore(
            name=f"{PREFIX}crash silent coordinators",
            description=f"No heartbeat of a run tagged {RESUME_TAG} for {silence:g} s: it is gone.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.*"},
                match=_RUN,
                match_related=_TAGGED,
                for_each=_EACH,
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=silence),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED, message=f"no heartbeat for {silence:g} s"
                )
            ],
        ),
        AutomationCore(
            name=f"{PREFIX}resume crashed coordinators",
            description="It goes on after its last checkpoint; no site repeats a paid release.",
            trigger=EventTrigger(
                # Stopped is how a coordinator ends on SIGTERM or without its exchange
                expect={"prefect.flow-run.Crashed", "prefect.flow-run.Stopped"},
                match=_RUN,
                match_related=_TAGGED,
                for_each=_EACH,
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED,
                    name="AwaitingRetry",
                    message="resumed after its last checkpoint",
                )
            ],
        ),
    ]


def budget_low(actions: Sequence[ActionTypes]) -> AutomationCore:
    """A site cannot pay for much more: once per site, account and threshold."""
    match = {"prefect.resource.id": "fedflow.site.*"}
    return AutomationCore(
        name=f"{PREFIX}a privacy budget is nearly spent",
        description="An account of a site has at most 10 % left, or cannot pay one more round.",
        trigger=EventTrigger(
            expect={BUDGET_LOW},
            match=ResourceSpecification(
                {**match, "fedflow.threshold": ["10-percent", "next-round"]}
            ),
            for_each={"prefect.resource.id", "fedflow.account", "fedflow.threshold"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=list(actions),
    )


def site_refused(block: UUID) -> AutomationCore:
    """A site refuses: told once an hour per site, because it will refuse every round."""
    return AutomationCore(
        name=f"{PREFIX}a site refuses",
        description="A site's own policy, budget or checks said no to a round.",
        trigger=EventTrigger(
            expect={f"{SITE_EVENTS}refused"},
            match=_SITE,
            for_each=_EACH,
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(hours=1),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="{{ event.payload.site }} refuses in job {{ event.payload.job }}",
                body="Round {{ event.payload.round }}: {{ event.payload.code }}."
                " Its operator knows why: fedflow site status.",
            )
        ],
    )


def job_ended_badly(block: UUID) -> AutomationCore:
    """A job was aborted or failed."""
    return AutomationCore(
        name=f"{PREFIX}a job did not complete",
        description="A job was aborted or failed.",
        trigger=EventTrigger(
            expect={f"{JOB_EVENTS}aborted", f"{JOB_EVENTS}failed"},
            match=_JOB,
            for_each=_EACH,
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="job {{ event.payload.job }}: {{ event.payload.state }}",
                body="{{ event.payload.reason }}",
            )
        ],
    )


async def wanted(wishes: Wishes, client: PrefectClient) -> list[AutomationCore]:
    """The automations for these wishes; InputError naming a block or deployment that is missing."""
    out = recovery(wishes.silence)
    low: list[ActionTypes] = [
        PauseDeployment(source="selected", deployment_id=await _deployment(name, client))
        for name in wishes.pause
    ]
    if wishes.notify:
        block = await _block(wishes.notify, client)
        low.append(
            SendNotification(
                block_document_id=block,
                subject="{{ event.payload.site }}: little privacy budget left",
                body="Account {{ event.payload.account }} crossed {{ event.payload.threshold }}.",
            )
        )
        out += [site_refused(block), job_ended_badly(block)]
    return [*out, budget_low(low)] if low else out


async def install(wishes: Wishes) -> dict[str, Change]:
    """Create what is missing, repair what differs, leave the rest; what was done, by name."""
    done: dict[str, Change] = {}
    async with scrubbed_client() as client:
        for automation in await wanted(wishes, client):
            found = await client.read_automations_by_name(automation.name)
            automation.enabled = True  # a client sends only what was set
            if not found:
                await client.create_automation(automation)
                done[automation.name] = "installed"
                continue
            first, *copies = sorted(found, key=lambda a: str(a.id))
            for copy in copies:
                await client.delete_automation(copy.id)
            if _same(first, automation) and not copies:
                done[automation.name] = "unchanged"
                continue
            await client.update_automation(first.id, automation)
            done[automation.name] = "updated"
    return done


async def remove() -> dict[str, Change]:
    """Delete every automation whose name says it is ours; the names."""
    done: dict[str, Change] = {}
    async with scrubbed_client() as client:
        for automation in await client.read_automations():
            if automation.name.startswith(PREFIX):
                await client.delete_automation(automation.id)
                done[automation.name] = "removed"
    return done


async def installed() -> list[tuple[str, str, bool]]:
    """Name, description and whether it is enabled, of every automation of ours on the server."""
    async with scrubbed_client() as client:
        found = await client.read_automations()
    return sorted((a.name, a.description, a.enabled) for a in found if a.name.startswith(PREFIX))


def _same(have: AutomationCore, want: AutomationCore) -> bool:
    fields = set(AutomationCore.model_fields) - {"owner_resource"}
    one, other = (a.model_dump(mode="json", include=fields) for a in (have, want))
    return _plain(one) == _plain(other)


def _plain(value: object) -> object:
    """Without the ids a server gives to triggers, and with sets in one order."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != "id"}
    if isinstance(value, list):
        items = [_plain(item) for item in value]
        return sorted(items, key=str) if all(isinstance(i, str) for i in items) else items
    return value


async def _block(slug: str, client: PrefectClient) -> UUID:
    kind, _, name = slug.partition("/")
    try:
        return (await client.read_block_document_by_name(name, kind)).id
    except ObjectNotFound:
        raise InputError(
            f"there is no block {slug!r} on the server",
            field="--notify",
            allowed="type/name of a notification block, such as slack-webhook/privacy-office",
        ) from None


async def _deployment(name: str, client: PrefectClient) -> UUID:
    try:
        return (await client.read_deployment_by_name(name)).id
    except (ObjectNotFound, ValueError):
        raise InputError(
            f"there is no deployment {name!r} on the server",
            field="--pause",
            allowed="flow/deployment, as `prefect deployment ls` shows them",
        ) from None
