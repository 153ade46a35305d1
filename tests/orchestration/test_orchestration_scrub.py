"""The scrubber, against every spelling that a server could try."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.base import PrefectHttpxAsyncClient
from prefect.settings import temporary_settings

from fedflow.errors import Refusal
from fedflow.orchestration import scrub

POISON = {"serializer": {"type": "pickle", "picklelib": "canary"}}
STATE = {"type": "COMPLETED", "name": "Completed", "data": POISON}
CLEAN = {"type": "COMPLETED", "name": "Completed"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["data", "state", "x"]), inner),
)


def keys(value):
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in keys(item)}
    if isinstance(value, list):
        return {key for item in value for key in keys(item)}
    return set()


@given(json_values)
def test_no_data_at_any_depth(value):
    clean = scrub.without_data(value)
    assert "data" not in keys(clean)
    assert scrub.without_data(clean) == clean
    if "data" not in keys(value):
        assert clean == value


async def received(content: bytes, **headers):
    """What a client behind the scrubber reads."""

    def answer(request):
        return httpx.Response(200, content=content, headers=headers)

    client = httpx.AsyncClient(
        transport=httpx.MockTransport(answer),
        event_hooks={"response": [scrub.drop_state_data]},
        base_url="http://x",
    )
    async with client:
        return await client.get("/")


PLAIN = json.dumps({"state": STATE}).encode()


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (PLAIN, {"content-type": "application/json"}),
        (PLAIN, {"content-type": "text/plain"}),
        (PLAIN, {}),
        (PLAIN.replace(b'"data"', b'"d\\u0061ta"'), {}),
        (json.dumps({"state": STATE}).encode("utf-16"), {"content-type": "application/json"}),
        (json.dumps({"state": STATE}).encode("utf-32"), {}),
        (PLAIN[:-2] + b', "data": {"serializer": 1}}}', {}),
        (gzip.compress(PLAIN), {"content-encoding": "gzip"}),
        (PLAIN, {"content-type": "application/json; charset=utf-16"}),
    ],
)
async def test_every_spelling_is_scrubbed(content, headers):
    response = await received(content, **headers)
    assert response.json() == {"state": CLEAN}
    assert b"pickle" not in response.content


@pytest.mark.parametrize("content", [b"", b"<html>data</html>", b"\xff\xfe\x00", b"[" * 100_000])
async def test_what_is_not_json_becomes_nothing(content):
    assert (await received(content)).content == b""


async def test_the_size_is_bounded_after_decompression():
    bomb = gzip.compress(b'"' + b"x" * (scrub.MAX_RESPONSE + 1) + b'"')
    assert len(bomb) < 10_000
    with pytest.raises(httpx.DecodingError, match="too large"):
        await received(bomb, **{"content-encoding": "gzip"})


async def test_without_an_api_url_no_server_is_started_behind_our_back():
    with temporary_settings({"api.url": None}), pytest.raises(Refusal, match="PREFECT_API_URL"):
        async with scrub.scrubbed_client():
            pass


async def test_the_server_does_not_decide_how_long_we_wait():
    waits = []

    def answer(request):
        return httpx.Response(503, headers={"retry-after": "1e9", "prefect-maintenance": "true"})

    client = httpx.AsyncClient(
        transport=httpx.MockTransport(answer), event_hooks={"response": [scrub.pace_retries]}
    )
    async with client:
        request = client.build_request("GET", "http://x/")
        uncounted = 0
        for _ in range(40):
            response = await client.send(request)
            uncounted += response.headers.get("prefect-maintenance") == "true"
            waits.append(float(response.headers["retry-after"]))
    assert waits[:6] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert max(waits) == 1.0
    assert uncounted == 24, "then Prefect's client counts, and gives up"


async def test_a_server_that_is_often_busy_is_asked_until_it_is_not():
    """Twelve times "later", which is more than Prefect's client would try."""
    asked = []

    def answer(request):
        asked.append(request)
        return httpx.Response(503 if len(asked) <= 12 else 200, json={})

    async def no_time(seconds):
        assert seconds < 2.5

    with temporary_settings({"api.url": "http://127.0.0.1:1/api"}):
        client = PrefectHttpxAsyncClient(
            transport=httpx.MockTransport(answer),
            event_hooks={"response": [scrub.pace_retries]},
            enable_csrf_support=False,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prefect.client.base.anyio.sleep", no_time)
            async with client:
                response = await client.get("http://x/")
    assert response.status_code == 200
    assert len(asked) == 13


async def test_a_client_gets_one_scrubber():
    from prefect.client.orchestration import get_client

    with temporary_settings({"api.url": "http://127.0.0.1:1/api"}):
        client = get_client()
    scrub.install(client)
    scrub.install(client)
    assert client._client.event_hooks["response"].count(scrub.drop_state_data) == 1
