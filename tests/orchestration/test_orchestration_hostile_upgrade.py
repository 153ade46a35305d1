"""A new Prefect may bring a new way in. These tests fail when its worker is not the known one.

The lists are of Prefect 3.8.8. When one differs, read what is new in ``prefect/workers/base.py``,
see whether data of a server reaches it, override it in ``worker.py`` where it does, add an attack
to the hostile tests, and only then change the list.
"""

from __future__ import annotations

import inspect

import pytest
from orchestration_room import serve_run, start_run
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import temporary_settings
from prefect.workers.base import BaseJobConfiguration, BaseWorker
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from fedflow.orchestration.configuration import FedflowJobConfiguration
from fedflow.orchestration.worker import FedflowWorker

WORKER = [
    "_cancel_run",
    "_cleanup_delivery_available",
    "_create_cleanup_executor",
    "_emit_flow_run_executed_event",
    "_emit_flow_run_submitted_event",
    "_emit_worker_started_event",
    "_emit_worker_stopped_event",
    "_ensure_worker_channel",
    "_event_related_resources",
    "_event_resource",
    "_get_scheduled_flow_runs",
    "_give_worker_labels_to_flow_run",
    "_initialize_after_sync",
    "_initiate_run",
    "_mark_flow_run_as_cancelled",
    "_propose_crashed_state",
    "_propose_failed_state",
    "_propose_pending_state",
    "_propose_submitting_state",
    "_record_work_pool_snapshot",
    "_record_worker_id",
    "_release_limit_slot",
    "_schedule_task",
    "_setup_cancellation_observer",
    "_submit_adhoc_run",
    "_submit_run",
    "_submit_run_and_capture_errors",
    "_submit_scheduled_flow_runs",
    "_sync_and_initialize",
    "_worker_metadata",
    "cleanup_handler_registry",
    "client",
    "get_all_available_worker_types",
    "get_and_submit_flow_runs",
    "get_default_base_job_template",
    "get_description",
    "get_documentation_url",
    "get_flow_run_logger",
    "get_logo_url",
    "get_name_slug",
    "get_status",
    "get_worker_class_from_type",
    "handled_cleanup_kinds",
    "is_worker_still_polling",
    "kill_infrastructure",
    "limiter",
    "max_cleanup_concurrency",
    "run",
    "setup",
    "start",
    "submit",
    "sync_with_backend",
    "teardown",
    "work_pool",
]

CONFIGURATION = [
    "_base_attribution_environment",
    "_base_deployment_labels",
    "_base_environment",
    "_base_flow_labels",
    "_base_flow_run_command",
    "_base_flow_run_environment",
    "_base_flow_run_labels",
    "_base_work_pool_labels",
    "_base_worker_name_label",
    "_coerce_command",
    "_coerce_env",
    "_get_base_config_defaults",
    "_related_resources",
    "from_template_and_values",
    "is_using_a_runner",
    "json_template",
    "prepare_for_flow_run",
    "resolve_for_flow_run",
]

REVIEW = (
    "this Prefect's {kind} is not the one that was reviewed: read {names} in "
    "prefect/workers/base.py for what a server can do with it, then change the list in this test"
)


def members(kind):
    return {
        name
        for name, value in vars(kind).items()
        if not name.startswith("__")
        and name not in ("model_post_init", "job_configuration")
        and (inspect.isroutine(getattr(value, "__func__", value)) or isinstance(value, property))
    }


@pytest.mark.parametrize(
    ("kind", "known"), [(BaseWorker, WORKER), (BaseJobConfiguration, CONFIGURATION)]
)
def test_the_worker_of_prefect_is_the_one_that_was_reviewed(kind, known):
    changed = sorted(members(kind) ^ set(known))
    assert not changed, REVIEW.format(kind=kind.__name__, names=", ".join(changed))


OVERRIDDEN = {
    BaseWorker: (FedflowWorker, members(FedflowWorker)),
    BaseJobConfiguration: (FedflowJobConfiguration, members(FedflowJobConfiguration)),
}
OWN = {
    *("_client", "_logger", "_wake_loop", "_adopt_loop", "_adopt", "_wake_filter", "_run"),
    *("_follow", "_supervise", "_propose", "_report", "pushed", "run"),
}


@pytest.mark.parametrize("base", OVERRIDDEN)
def test_what_is_overridden_is_there_and_takes_the_same(base):
    """A method that Prefect renamed would be overridden in vain."""
    ours, names = OVERRIDDEN[base]
    for name in sorted(names - OWN):
        theirs = getattr(base, name, None)
        assert theirs is not None, f"Prefect's {base.__name__} has no {name} any more"
        if name == "prepare_for_flow_run":
            continue  # takes anything
        wanted = [p.name for p in inspect.signature(theirs).parameters.values()]
        taken = [p.name for p in inspect.signature(getattr(ours, name)).parameters.values()]
        if "exc_info" not in wanted:
            assert taken == wanted, f"{name} takes {wanted} in this Prefect, and {taken} here"


CALLED = (
    (FedflowJobConfiguration, "resolve_for_flow_run"),
    (FedflowWorker, "_record_work_pool_snapshot"),
    (FedflowWorker, "_ensure_worker_channel"),
    (FedflowWorker, "_setup_cancellation_observer"),
    (FedflowWorker, "_get_scheduled_flow_runs"),
    (FedflowWorker, "_propose_pending_state"),
    (FedflowWorker, "_propose_submitting_state"),
    (FedflowWorker, "_give_worker_labels_to_flow_run"),
    (FedflowWorker, "get_flow_run_logger"),
    (FedflowWorker, "sync_with_backend"),
)
NEVER = ("resolve_for_flow_run", "from_template_and_values", "prepare_for_flow_run")


async def test_what_is_overridden_is_what_runs(connected, label, daemon, monkeypatch):
    called = set()
    for kind, name in CALLED:
        plain = vars(kind)[name]
        method = plain.__func__ if isinstance(plain, classmethod) else plain

        def noted(*args, _method=method, _name=name, **kwargs):
            called.add(_name)
            return _method(*args, **kwargs)

        monkeypatch.setattr(
            kind, name, classmethod(noted) if isinstance(plain, classmethod) else noted
        )
    for name in NEVER:
        monkeypatch.setattr(BaseJobConfiguration, name, _never)
    state = await serve_run(label, await start_run(label))
    assert state.is_completed()
    assert called == {name for _, name in CALLED}


def _never(*_, **__):
    raise AssertionError("Prefect's own configuration was asked")


def test_clients_are_still_made_of_what_the_scrubber_holds():
    with temporary_settings({"api.url": "http://127.0.0.1:1/api"}):
        client, sync = get_client(), get_client(sync_client=True)
    assert isinstance(client, PrefectClient)
    assert not client._client.follow_redirects
    assert not sync._client.follow_redirects
    assert isinstance(client._client.event_hooks["response"], list)


def test_a_web_socket_still_asks_where_a_redirect_goes():
    class Response:
        status_code, headers = 302, {"Location": "ws://elsewhere.example/"}

    error = InvalidStatus(Response())
    assert connect("ws://127.0.0.1:1/").process_redirect(error) is error
    source = inspect.getsource(connect.__await_impl__)
    assert "self.process_redirect(exc)" in source
