"""Registration and sessions, against a real server."""

from __future__ import annotations

import asyncio
import uuid

import httpx
import pytest
from orchestration_room import MANIFEST, read_state, serve_run
from prefect import flow
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext
from prefect.settings import temporary_settings
from prefect.states import Running
from pydantic import ValidationError

from fedflow.errors import InputError, Refusal
from fedflow.orchestration import session_book
from fedflow.orchestration.configuration import base_job_template
from fedflow.orchestration.registration import SESSION_FLOW, deployment_name, register_site
from fedflow.orchestration.scrub import scrubbed_client
from fedflow.orchestration.sessions import (
    SessionState,
    cancel_session,
    close_session,
    open_session,
    session_state,
    session_states,
)
from fedflow.orchestration.worker import FedflowWorker

pytestmark = pytest.mark.usefixtures("connected")


def test_the_entry_point_makes_the_type_known():
    from prefect.workers.base import BaseWorker

    assert "fedflow" in BaseWorker.get_all_available_worker_types()
    assert BaseWorker.get_worker_class_from_type("fedflow") is FedflowWorker


async def test_a_registered_site_carries_no_code(label):
    deployment_id = await register_site(label)
    async with scrubbed_client() as client:
        deployment = await client.read_deployment(deployment_id)
        pool = await client.read_work_pool(label)
    assert pool.type == "fedflow"
    assert pool.base_job_template == base_job_template()
    assert deployment.name == label
    assert deployment.work_pool_name == label
    assert deployment.enforce_parameter_schema
    assert set(deployment.parameter_openapi_schema["properties"]) == {"job", "manifest"}
    assert not any(
        (
            deployment.entrypoint,
            deployment.path,
            deployment.pull_steps,
            deployment.job_variables,
            deployment.parameters,
        )
    )


async def test_registering_again_changes_nothing(label):
    first = await register_site(label)
    assert await register_site(label) == first


async def test_registering_again_repairs(label):
    first = await register_site(label)
    async with scrubbed_client() as client:
        changed = base_job_template()
        changed["job_configuration"]["command"] = "id"
        await client.update_work_pool(label, WorkPoolUpdate(base_job_template=changed))
        flow_id = await client.create_flow_from_name(SESSION_FLOW)
        await client.create_deployment(
            flow_id, name=label, work_pool_name=label, entrypoint="x.py:f"
        )
        assert (await client.read_deployment(first)).entrypoint == "x.py:f"
        again = await register_site(label)
        assert (await client.read_deployment(again)).entrypoint is None
        assert (await client.read_work_pool(label)).base_job_template == base_job_template()


async def test_a_pool_of_somebody_else_is_left_alone(label):
    async with scrubbed_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=label, type="process"))
        with pytest.raises(Refusal, match="has type 'process'"):
            await register_site(label)
        assert (await client.read_work_pool(label)).type == "process"


@pytest.mark.parametrize("label", ["", "Site", "a/b", "a%b", "-a", "a" * 64, "prefect-1", "a\n"])
def test_labels_prefect_cannot_take(label):
    with pytest.raises(InputError, match="site label"):
        deployment_name(label)


async def test_open_is_idempotent_per_attempt(label):
    await register_site(label)
    first = await open_session(label, "trial", MANIFEST, 1)
    assert await open_session(label, "trial", MANIFEST, 1) == first
    second = await open_session(label, "trial", MANIFEST, 2)
    assert second != first
    async with scrubbed_client() as client:
        run = await client.read_flow_run(first)
    assert run.name == f"{label} · session 1"
    assert run.parameters == {"job": "trial", "manifest": MANIFEST}
    assert set(run.tags) >= {"fedflow", "job:trial"}


@pytest.mark.parametrize(("job", "manifest"), [("Bad Job", MANIFEST), ("trial", "00")])
async def test_open_checks_before_it_asks(label, job, manifest):
    with pytest.raises(ValidationError):
        await open_session(label, job, manifest, 1)


async def test_a_session_inside_a_flow_is_its_subflow(label, daemon):
    await register_site(label)

    @flow(persist_result=False)
    async def parent() -> uuid.UUID:
        return await open_session(label, "trial", MANIFEST, 1)

    run_id = await parent()
    async with scrubbed_client() as client:
        run = await client.read_flow_run(run_id)
    assert run.parent_task_run_id is not None
    assert (await serve_run(label, run_id)).is_completed()
    assert await session_state(run_id) == SessionState("COMPLETED", "Completed", "3 rounds")


async def test_asking_again_makes_no_second_place_in_the_flow(label):
    await register_site(label)

    @flow(persist_result=False)
    async def parent() -> uuid.UUID:
        assert await open_session(label, "trial", MANIFEST, 1) == await open_session(
            label, "trial", MANIFEST, 1
        )
        context = FlowRunContext.get()
        return context.flow_run.id

    mine = FlowRunFilter(id=FlowRunFilterId(any_=[await parent()]))
    async with scrubbed_client() as client:
        tasks = await client.read_task_runs(flow_run_filter=mine)
    assert [task.name for task in tasks] == [f"{label} · session 1"]


async def test_many_states_in_one_look(label):
    await register_site(label)
    ids = [await open_session(label, "trial", MANIFEST, n) for n in (1, 2)]
    await close_session(ids[0], "Dropped", "gone in round 2")
    states = await session_states([*ids, uuid.uuid4()])
    assert states[ids[0]] == SessionState("CRASHED", "Dropped", "gone in round 2")
    assert states[ids[0]].is_final
    assert states[ids[1]].type == "SCHEDULED"
    assert not states[ids[1]].is_final
    assert len(states) == 2


async def test_cancelling_what_has_not_started(label):
    await register_site(label)
    run_id = await open_session(label, "trial", MANIFEST, 1)
    await cancel_session(run_id)
    assert (await session_state(run_id)).type == "CANCELLED"


async def test_what_has_ended_stays_ended(label, daemon):
    await register_site(label)
    run_id = await open_session(label, "trial", MANIFEST, 1)
    await serve_run(label, run_id)
    await cancel_session(run_id)
    await close_session(run_id, "Dropped", "late")
    assert (await read_state(run_id)).is_completed()


@pytest.fixture
async def book(label, monkeypatch):
    monkeypatch.setattr(session_book, "LOOK_SECONDS", 0.05)
    made = session_book.SessionBook("trial", MANIFEST, [label])
    keeping = asyncio.create_task(made.keep())
    yield made
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def served(book, site):
    async with scrubbed_client() as client:
        await book._serve(site, client)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_session_is_replaced_when_its_worker_went_away(label, book):
    await until(lambda: label in book.open)
    first = book.open[label]
    await close_session(first, "Dropped", "the worker was stopped")
    await until(lambda: book.open[label] != first)
    assert book.attempts[label] == 2
    assert (await session_state(book.open[label])).type == "SCHEDULED"


async def test_many_sites_are_asked_with_few_requests(label):
    sites = [f"{label[:50]}-{number}" for number in range(6)]
    first = await asked(session_book.SessionBook("trial", MANIFEST, sites))
    assert len(first) <= 3 + 3 * len(sites)  # the look; pool, deployment and run of each
    again = session_book.SessionBook("trial", MANIFEST, sites)
    assert len(await asked(again)) <= 3 + len(sites)
    assert set(again.attempts.values()) == {1}


async def asked(book):
    """The requests in which a book opens all its sessions."""
    requests = []

    async def note(request):
        requests.append((request.method, request.url.path, request.read()))

    async with scrubbed_client() as client:
        client._client.event_hooks["request"].append(note)
        await book._serve_due(client)
    assert book.complete.is_set()
    # a client greets the server first; a busy server is asked the same again
    return {asked for asked in requests if not asked[1].endswith(("version", "csrf-token"))}


async def test_sites_are_asked_one_at_a_time_once_the_server_is_busy(monkeypatch):
    sites = [f"site-{number}" for number in range(20)]
    book = session_book.SessionBook("trial", MANIFEST, sites)
    busy, most, served = 0, [], []

    async def serve(site, client, known):
        nonlocal busy
        busy += 1
        most.append(busy)
        await asyncio.sleep(0)
        if len(served) == 3:
            await book._narrow(httpx.Response(503))
        served.append(site)
        busy -= 1

    async def nothing(labels, client):
        return None

    monkeypatch.setattr(book, "_serve", serve)
    monkeypatch.setattr(session_book, "look_up", nothing)
    await book._serve_due(None)
    assert sorted(served) == sorted(sites)
    assert max(most) == session_book.AT_ONCE
    assert set(most[-8:]) == {1}


async def test_a_restarted_coordinator_goes_on_with_the_open_session(label, book):
    await until(lambda: label in book.open)
    first = book.open[label]
    again = session_book.SessionBook("trial", MANIFEST, [label])
    await served(again, label)
    assert again.open[label] == first
    await cancel_session(first)  # what has ended is not opened again, whoever opened it
    third = session_book.SessionBook("trial", MANIFEST, [label])
    await served(third, label)
    assert third.attempts[label] == 2
    assert third.open[label] != first


async def test_a_site_that_was_lost_gets_a_session_for_its_return(label, book):
    await until(lambda: label in book.open)
    first = book.open[label]
    async with scrubbed_client() as client:
        await client.set_flow_run_state(first, Running(), force=True)
    book.lost(label, "no masked update in round 3")
    book.lost("nobody", "it has no session")
    await until(lambda: book.open[label] != first)
    assert await session_state(first) == SessionState(
        "CRASHED", "Dropped", "no masked update in round 3"
    )


async def test_what_no_worker_took_is_cancelled_at_the_end_at_once(label, book):
    await until(lambda: label in book.open)
    ends = await asyncio.wait_for(book.finish(600), 60)
    assert set(ends) == {label}
    assert (await session_state(book.open[label])).type == "CANCELLED"


async def test_sessions_are_caught_up_with_when_the_server_is_back(label, monkeypatch):
    away = session_book.SessionBook("trial", MANIFEST, [label])
    with temporary_settings({"api.url": "http://127.0.0.1:9/api"}), monkeypatch.context() as short:
        short.setattr(session_book, "REQUEST_SECONDS", 0.5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(away.keep(), 1)
        assert not away.open
        assert await away.finish(0.1) == {}
    await served(away, label)
    assert label in away.open
