"""The relay under attack, over real connections: forged, sent again, cut, too much, too slow."""

import hashlib
import json
import os
import socket
import threading
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from relay_room import JOB, Parties, RelayInThread, digest, folder_relay, member, until

import fedflow.relay.app
import fedflow.relay.server
from fedflow.crypto.identity import Identity
from fedflow.errors import Refusal, Violation
from fedflow.exchange import layout
from fedflow.exchange.request_signing import RelayRequest, sign_request
from fedflow.relay.access import Party
from fedflow.relay.limits import Limits
from fedflow.relay.store import FolderStore
from fedflow.wire.membership import Role

OBJECTS = "/v1/objects/"
LIMITS = Limits(
    site_rate=2000.0,
    stranger_rate=1000.0,
    site_objects=60,
    site_bytes=1 << 20,
    site_waits=2,
)


@pytest.fixture(scope="module")
def relay(tmp_path_factory):
    made = folder_relay(tmp_path_factory.mktemp("relay"), limits=LIMITS).start()
    made.publish()
    yield made
    made.stop()


@pytest.fixture
def own(tmp_path):
    """A relay for this test alone."""
    made = folder_relay(tmp_path, limits=LIMITS).start()
    made.publish()
    yield made
    made.stop()


@pytest.fixture
def alpha(relay):
    return relay.parties.sites["alpha"]


def code(response):
    return response.status_code, response.json()["code"]


def up(sequence, site=0, leg="advert"):
    return layout.up(JOB, sequence, leg, site)


def test_put_once_and_get(relay, alpha):
    exchange = relay.as_(alpha)
    assert exchange.get(up(1)) is None
    exchange.put(up(1), b"one")
    exchange.put(up(1), b"one")
    with pytest.raises(Violation) as caught:
        exchange.put(up(1), b"two")
    assert caught.value.code == "already-put"
    with pytest.raises(Violation) as caught:
        exchange.put(up(1), b"other size")
    assert caught.value.code == "already-put"
    assert relay.as_(relay.parties.coordinator).get(up(1)) == b"one"
    assert exchange.list(f"jobs/{JOB}/rounds/000001/up/advert") == ["0"]
    assert exchange.list("jobs") == [JOB]
    assert relay.as_(relay.parties.outsider).list("jobs") == []
    head = relay.request(alpha, "HEAD", OBJECTS + up(1))
    assert (head.status_code, head.headers["content-length"]) == (200, str(44 + 3))


def test_a_request_without_a_signature_gets_nothing(relay):
    for target in (OBJECTS + layout.manifest(JOB), "/v1/list/jobs", "/v1/anything"):
        response = httpx.get(relay.url + target)
        assert code(response) == (401, "not-signed")
    for target in ("/", "/docs", "/openapi.json", "/v2/objects/x", "//v1/list/jobs"):
        assert httpx.get(relay.url + target).status_code == 404


def test_a_header_that_cannot_be_read_is_refused(relay, alpha):
    target = OBJECTS + layout.manifest(JOB)
    good = sign_request(alpha, "GET", target)
    for header in ("", "Bearer x", good[:-1], good + "0", good.upper(), good + ", x=1", "Fedflow"):
        response = relay.request(alpha, "GET", target, authorization=header)
        assert code(response) == (401, "bad-authorization"), header


@pytest.mark.parametrize("what", ["method", "target", "query", "key", "body", "time", "nonce"])
def test_a_signature_holds_for_exactly_one_request(relay, alpha, what):
    """A header of one request beside another one, or changed in any field."""
    method, target, body = "PUT", OBJECTS + up(2), b"body"
    header = sign_request(alpha, method, target, body)
    sent_method, sent_target, sent_body = method, target, body
    other = relay.parties.sites["beta"].public.hex()
    if what == "method":
        sent_method, sent_body = "GET", b""
    elif what == "target":
        sent_target = OBJECTS + up(3)
    elif what == "query":
        sent_target += "?wait=1"
    elif what == "key":
        header = header.replace(alpha.public.hex(), other)
    elif what == "body":
        header = header.replace(digest(body), digest(b"evil"))
        sent_body = b"evil"
    elif what == "time":
        at = header.index("time=") + 17
        header = header[:at] + ("1" if header[at] != "1" else "2") + header[at + 1 :]
    else:
        at = header.index("nonce=") + 6
        header = header[:at] + ("1" if header[at] != "1" else "2") + header[at + 1 :]
    response = relay.request(alpha, sent_method, sent_target, sent_body, authorization=header)
    assert code(response) == (401, "bad-signature")
    assert relay.as_(alpha).get(up(2)) is None


def test_a_signature_for_another_purpose_is_none_here(relay, alpha):
    header = sign_request(alpha, "GET", OBJECTS + up(1))
    found = header.rpartition("signature=")
    request = RelayRequest("GET", OBJECTS + up(1), hashlib.sha256(b"").digest(), 1, bytes(16))
    other = alpha.sign("order", request.encode()).hex()
    response = relay.request(
        alpha, "GET", OBJECTS + up(1), authorization=found[0] + "signature=" + other
    )
    assert code(response) == (401, "bad-signature")


def test_a_body_that_is_not_the_signed_one_is_not_stored(relay, alpha):
    target = OBJECTS + up(4)
    header = sign_request(alpha, "PUT", target, b"signed")
    response = relay.request(alpha, "PUT", target, b"forged", authorization=header)
    assert code(response) == (400, "wrong-body")
    assert relay.as_(alpha).get(up(4)) is None
    relay.as_(alpha).put(up(4), b"signed")  # and nothing was taken


def test_a_request_counts_once(relay, alpha):
    for method, body in (("GET", b""), ("PUT", b"x")):
        header = sign_request(alpha, method, OBJECTS + up(5), body)
        first = relay.request(alpha, method, OBJECTS + up(5), body, authorization=header)
        assert first.status_code in (201, 404)
        again = relay.request(alpha, method, OBJECTS + up(5), body, authorization=header)
        assert code(again) == (401, "replayed")


@pytest.mark.parametrize(("skew", "word"), [(-130, "behind"), (130, "ahead of"), (-1e6, "behind")])
def test_a_wrong_clock_is_told_how_wrong(relay, alpha, skew, word):
    header = sign_request(alpha, "GET", "/v1/list/jobs", now=time.time() + skew)
    response = relay.request(alpha, "GET", "/v1/list/jobs", authorization=header)
    assert code(response) == (401, "clock")
    reason = response.json()["reason"]
    assert word in reason
    assert abs(float(reason.split("time is ")[1].split(" s")[0]) - abs(skew)) < 20
    near = sign_request(alpha, "GET", "/v1/list/jobs", now=time.time() + skew / abs(skew) * 60)
    assert relay.request(alpha, "GET", "/v1/list/jobs", authorization=near).status_code == 200


TRICKS = [
    "jobs/job-1/rounds/000001/up/advert/../advert/1", "jobs/../jobs/job-1/countersign/1",
    "jobs/job-1/rounds/000001/up/advert/%31", "jobs/job-1//countersign/0", "/jobs/job-1/end",
    "jobs/job-1/countersign/0/", "jobs/job-1/countersign/0%00", "jobs%2fjob-1%2fcountersign%2f0",
    "jobs/job-1/countersign/%2e%2e/0", "..%2f..%2fetc%2fpasswd", "jobs/job-1/countersign/00",
    "jobs/JOB-1/countersign/0", "jobs/job-1/countersign/0;x", "jobs/job-1/" + "x" * 1000,
    "jobs/job-1/countersign/%D9%A0", "jobs/job-1/countersign/0#f", "federation/roster/0000001",
]  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_a_name_is_taken_as_it_is_sent(relay, alpha, trick):
    """Sent raw, as no client would, and signed as sent."""
    before = sorted(path for path in relay.objects.store._root.rglob("*") if path.is_file())
    for method in ("PUT", "GET"):
        status, _ = raw(relay, alpha, method, OBJECTS + trick, b"x" if method == "PUT" else b"")
        assert status in (400, 403, 404), trick
    assert before == sorted(p for p in relay.objects.store._root.rglob("*") if p.is_file())


def raw(relay, identity, method, target, body=b"", *, length=None, header=None, hold=None):
    """One request byte for byte; status and the rest of the answer. ``hold`` bytes are not sent."""
    header = header or sign_request(identity, method, target, body)
    length = len(body) if length is None else length
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n"
    head += f"Content-Length: {length}\r\n" if method == "PUT" else ""
    with socket.create_connection(("127.0.0.1", relay.port), timeout=60) as link:
        link.sendall(head.encode() + b"Connection: close\r\n\r\n" + body[: hold or len(body)])
        if length > len(body) and hold is None:
            link.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := link.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    return (int(answer.split()[1]) if answer else 0), answer


def test_other_members_places_are_not_mine(relay):
    parties = relay.parties
    for who, key in (
        (parties.sites["alpha"], up(6, site=1)),
        (parties.sites["alpha"], layout.order(JOB, 6)),
        (parties.outsider, up(6, site=0)),
        (parties.outsider, layout.countersign(JOB, 0)),
        (parties.coordinator, up(6, site=0)),
        (parties.other, layout.order(JOB, 6)),
        (parties.other, layout.end(JOB)),
        (parties.auditor, layout.end(JOB)),
        (parties.authority, layout.order(JOB, 6)),
        (parties.sites["alpha"], layout.federation_roster(2)),
        (parties.coordinator, layout.federation_roster(2)),
        (parties.sites["alpha"], up(6, site=0).replace(JOB, "no-such-job")),
    ):
        with pytest.raises(Refusal) as caught:
            relay.as_(who).put(key, b"x")
        assert caught.value.code == "not-yours"
        assert relay.as_(parties.auditor).get(key) is None
    for who in (parties.outsider, parties.other):
        with pytest.raises(Refusal):
            relay.as_(who).get(layout.manifest(JOB))
        with pytest.raises(Refusal):
            relay.as_(who).list(f"jobs/{JOB}/rounds")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_random_member_never_changes_anothers_namespace(relay, data):
    """Over HTTP, with any name of the layout: what is not the member's stays as it was."""
    parties = relay.parties
    keys = {
        **{(label, index): key for index, (label, key) in enumerate(parties.sites.items())},
        ("outsider", None): parties.outsider,
        ("auditor", None): parties.auditor,
        ("other", None): parties.other,
    }
    (_, index), identity = data.draw(st.sampled_from(sorted(keys.items(), key=str)))
    site, number = data.draw(st.integers(0, 3)), data.draw(st.integers(900, 905))
    key = data.draw(
        st.sampled_from(
            [
                up(number, site, leg) for leg in ("advert", "masked", "decline")
            ]
            + [
                layout.vector(JOB, number, site, 0), layout.countersign(JOB, site),
                layout.hello(JOB, site, bytes(32)), layout.order(JOB, number), layout.end(JOB),
                layout.down(JOB, number, "delivery", site), layout.manifest(JOB),
                layout.transcript(JOB, number), layout.federation_roster(number),
            ]
        )
    )  # fmt: skip
    before = relay.as_(parties.authority).get(key)
    payload = data.draw(st.binary(min_size=1, max_size=8))
    try:
        relay.as_(identity).put(key, payload)
    except (Refusal, Violation):
        assert relay.as_(parties.authority).get(key) == before
    else:
        assert index is not None
        assert index == site


def test_only_what_the_authority_signed_is_a_manifest(relay):
    parties, key = relay.parties, layout.manifest("job-2")
    coordinator = relay.as_(parties.coordinator)
    for forged in (
        parties.manifest("job-2", signer=parties.coordinator),
        parties.manifest("job-3"),
        b"x",
        parties.manifest("job-2", created=1, not_after=2),
    ):
        with pytest.raises((Refusal, Violation)):
            coordinator.put(key, forged)
        assert relay.as_(parties.auditor).get(key) is None
    stranger = parties.manifest("job-2", coordinator=parties.stranger.public.raw)
    with pytest.raises(Refusal) as caught:
        relay.as_(parties.authority).put(key, stranger)
    assert caught.value.code == "not-a-member"
    coordinator.put(key, parties.manifest("job-2"))


def test_a_blob_has_the_name_of_its_bytes(relay):
    coordinator = relay.as_(relay.parties.coordinator)
    with pytest.raises(Refusal) as caught:
        coordinator.put(layout.blob(JOB, bytes(32)), b"model")
    assert caught.value.code == "not-yours"
    coordinator.put(layout.blob(JOB, hashlib.sha256(b"model").digest()), b"model")


def test_a_coordinator_may_not_fill_the_store_with_jobs_that_never_begin(relay):
    other = relay.as_(relay.parties.other)
    blob = hashlib.sha256(b"m").digest()
    for number in range(16):
        other.put(layout.blob(f"never-{number}", blob), b"m")
    with pytest.raises(Refusal) as caught:
        other.put(layout.blob("never-16", blob), b"m")
    assert caught.value.code == "quota"


def test_a_revoked_member_is_out_at_once_and_an_old_list_does_not_bring_it_back(own):
    parties = own.parties
    alpha, beta = own.as_(parties.sites["alpha"]), own.as_(parties.sites["beta"])
    alpha.put(up(1), b"x")
    authority, old = own.as_(parties.authority), parties.roster(2)
    parties.revoke(parties.sites["alpha"])
    authority.put(layout.federation_roster(3), parties.roster(3))
    for use in (
        lambda: alpha.put(up(2), b"x"),
        lambda: alpha.get(up(1)),
        lambda: alpha.list("jobs"),
    ):
        with pytest.raises(Refusal) as caught:
            use()
        assert caught.value.code == "revoked"
    with pytest.raises(Refusal) as caught:
        authority.put(layout.federation_roster(2), old)
    assert caught.value.code == "stale-roster"
    # Even where somebody else put it into the store.
    own.objects.store._exchange.put(layout.federation_roster(2), old)
    assert httpx.get(f"{own.url}/readyz").status_code == 200
    with pytest.raises(Refusal):
        alpha.get(up(1))
    assert beta.get(up(1)) == b"x"
    with pytest.raises(Refusal) as caught:  # and nobody makes a new job with the revoked key
        authority.put(layout.manifest("job-2"), parties.manifest("job-2"))
    assert caught.value.code == "not-a-member"


def test_a_member_revoked_while_its_body_travels_is_out(own):
    parties, store = own.parties, own.objects.store
    alpha, target = parties.sites["alpha"], OBJECTS + up(1)
    body, header = b"late", sign_request(parties.sites["alpha"], "PUT", OBJECTS + up(1), b"late")
    with socket.create_connection(("127.0.0.1", own.port), timeout=60) as link:
        link.sendall(
            f"PUT {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n"
            f"Content-Length: 4\r\n\r\n".encode()
            + body[:2]
        )
        until(lambda: own.objects.memory.held, "the body is expected")
        parties.revoke(alpha)
        own.objects.members.adopt(own.objects.members.read(parties.roster(5)))
        link.sendall(body[2:])
        answer = b""
        while b"}" not in answer:
            part = link.recv(65536)
            assert part, answer
            answer += part
        assert b'"revoked"' in answer
    assert not (store._root / up(1)).exists()


def test_expired_and_future_members_are_told_so(own):
    parties, now = own.parties, int(time.time())
    late, early = Identity.generate(), Identity.generate()
    parties.members += [
        member(Role.SITE, "late", late, not_before=now - 10, not_after=now - 5),
        member(Role.SITE, "early", early, not_before=now + 900, not_after=now + 999),
    ]
    own.as_(parties.authority).put(layout.federation_roster(2), parties.roster(2))
    for who, word in ((late, "expired"), (early, "not-yet"), (parties.stranger, "not-a-member")):
        with pytest.raises(Refusal) as caught:
            own.as_(who).list("jobs")
        assert caught.value.code == word


def test_a_list_of_another_federation_or_signer_is_refused(own):
    parties, authority = own.parties, own.as_(own.parties.authority)
    forged = Parties()
    with pytest.raises(Violation):
        authority.put(layout.federation_roster(2), forged.roster(2))
    with pytest.raises(Violation):
        authority.put(layout.federation_roster(2), parties.roster(2, federation="other"))
    with pytest.raises(Violation):
        authority.put(layout.federation_roster(2), parties.roster(3))
    own.objects.store._exchange.put(layout.federation_roster(9), forged.roster(9))
    assert httpx.get(f"{own.url}/readyz").status_code == 200
    assert own.objects.members.roster.serial == 1
    authority.put(layout.federation_roster(10), parties.roster(10))


# ---- sizes, quotas, rates, time


def test_an_oversized_body_is_refused_before_it_is_read(relay, alpha, monkeypatch):
    monkeypatch.setattr(fedflow.relay.app, "DRAIN_SECONDS", 0.3)
    body = b"x" * ((1 << 16) + 1)
    target = OBJECTS + up(7, leg="decline")
    status, answer = raw(relay, alpha, "PUT", target, body, hold=10)
    assert status in (413, 0)  # hung up on, if it does not read the answer in time
    assert b"too-long" in answer or not answer
    with pytest.raises(Violation) as caught:
        relay.as_(alpha).put(up(7, leg="decline"), body)
    assert caught.value.code == "too-long"
    assert relay.objects.memory.held == 0


def test_a_body_without_a_length_is_refused(relay, alpha):
    header = sign_request(alpha, "PUT", OBJECTS + up(7), b"x")

    def stream():
        yield b"x"

    answer = httpx.put(
        relay.url + OBJECTS + up(7), content=stream(), headers={"authorization": header}
    )
    assert code(answer) == (411, "no-length")


def test_a_truncated_body_leaves_nothing(relay, alpha):
    raw(relay, alpha, "PUT", OBJECTS + up(8), b"half", length=100)
    until(lambda: relay.objects.memory.held == 0, "the relay lets go")
    assert relay.as_(alpha).get(up(8)) is None
    relay.as_(alpha).put(up(8), b"whole")


def test_a_slow_body_is_cut_off(tmp_path):
    """Declared, and never sent: the connection ends, and nothing is stored."""
    relay = folder_relay(tmp_path, limits=Limits(body_seconds=0.3)).start()
    relay.publish()
    alpha = relay.parties.sites["alpha"]
    status, answer = raw(relay, alpha, "PUT", OBJECTS + up(9), b"slow body", hold=3)
    assert status == 408
    assert b"too-slow" in answer
    assert relay.as_(alpha).get(up(9)) is None
    relay.stop()


def test_a_slow_header_is_hung_up_on(relay, monkeypatch):
    monkeypatch.setattr(fedflow.relay.server, "HEADER_SECONDS", 0.3)
    for start in (
        b"",
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n GE",
    ):
        with socket.create_connection(("127.0.0.1", relay.port), timeout=60) as link:
            link.sendall(start)
            while link.recv(65536):
                pass  # ends when the relay hangs up, or the test's time is over


def test_a_huge_header_is_refused(relay):
    with socket.create_connection(("127.0.0.1", relay.port), timeout=60) as link:
        try:
            link.sendall(b"GET /v1/list/jobs HTTP/1.1\r\nX: " + b"x" * 100_000)
            answer = link.recv(65536)
        except OSError:
            answer = b""
    assert answer[:12] in (b"HTTP/1.1 400", b"")


def test_a_members_share_of_a_job_is_limited_and_counted_again_after_a_restart(tmp_path):
    relay = folder_relay(tmp_path, limits=LIMITS).start()
    relay.publish()
    alpha, beta = relay.parties.sites["alpha"], relay.parties.sites["beta"]
    for number in range(60):
        relay.as_(alpha).put(up(number), b"x")
    with pytest.raises(Refusal) as caught:
        relay.as_(alpha).put(up(99), b"x")
    assert caught.value.code == "quota"
    relay.as_(alpha).put(up(3), b"x")  # a retry is nothing new
    for number in range(3):
        relay.as_(beta).put(layout.vector(JOB, 1, 1, number), bytes(1 << 18))
    beta_full = layout.vector(JOB, 1, 1, 3)
    relay.as_(beta).put(beta_full, bytes((1 << 18) - 1))
    with pytest.raises(Refusal):
        relay.as_(beta).put(layout.vector(JOB, 1, 1, 4), bytes(2))
    relay.as_(beta).put(layout.vector(JOB, 1, 1, 4), bytes(1))
    relay.stop()
    again = RelayInThread(FolderStore(tmp_path / "store"), relay.parties, LIMITS).start()
    for who, key in ((alpha, up(99)), (beta, layout.vector(JOB, 1, 1, 5))):
        with pytest.raises(Refusal) as caught:
            again.as_(who).put(key, b"x")
        assert caught.value.code == "quota"
    again.as_(relay.parties.sites["gamma"]).put(up(1, site=2), b"x")
    again.stop()


def test_too_many_requests_wait_their_turn(tmp_path):
    relay = folder_relay(tmp_path, limits=Limits(site_rate=0.05, stranger_rate=0.1)).start()
    relay.publish()
    alpha = relay.parties.sites["alpha"]
    answers = [relay.request(alpha, "GET", "/v1/list/jobs") for _ in range(3)]
    assert {a.status_code for a in answers} == {200, 429}
    assert int(answers[-1].headers["retry-after"]) >= 1
    with pytest.raises(OSError, match="429"):
        relay.as_(alpha).list("jobs")
    assert relay.as_(relay.parties.sites["beta"]).list("jobs") == [JOB]  # each its own
    for _ in range(4):
        last = httpx.get(relay.url + "/v1/list/jobs")
    assert last.status_code == 429
    assert relay.request(relay.parties.coordinator, "GET", "/v1/list/jobs").status_code == 429
    relay.stop()


# ---- waiting


def test_a_waiting_request_is_answered_when_the_object_is_put(relay, alpha):
    answers = []
    coordinator = relay.parties.coordinator
    target = f"{OBJECTS}{layout.order(JOB, 50)}?wait=25"
    waiter = threading.Thread(target=lambda: answers.append(relay.request(alpha, "GET", target)))
    waiter.start()
    until(lambda: relay.objects.waiting.count == 1, "the request waits")
    relay.as_(coordinator).put(layout.order(JOB, 50), b"order")
    waiter.join(60)
    assert answers[0].content.endswith(b"order")
    assert relay.objects.waiting.count == 0


def test_waiting_ends_with_what_makes_it_pointless(relay, alpha):
    answers = []
    target = f"{OBJECTS}{layout.order(JOB, 61)}?wait=25&unless={layout.order(JOB, 62)}"
    waiter = threading.Thread(target=lambda: answers.append(relay.request(alpha, "GET", target)))
    waiter.start()
    until(lambda: relay.objects.waiting.count == 1, "the request waits")
    relay.as_(relay.parties.coordinator).put(layout.order(JOB, 62), b"later")
    waiter.join(60)
    assert code(answers[0]) == (404, "absent")


def test_what_may_not_be_read_may_not_be_waited_for(relay, alpha):
    secret = layout.down(JOB, 1, "delivery", 1)
    for target in (
        f"{OBJECTS}{secret}?wait=1",
        f"{OBJECTS}{layout.order(JOB, 70)}?wait=1&unless={secret}",
    ):
        assert code(relay.request(alpha, "GET", target)) == (403, "not-yours")
    for query in (
        "wait=",
        "wait=1e9",
        "wait=-1",
        "wait=1&x=1",
        "x",
        "wait=1" + "&unless=jobs/a/end" * 5,
    ):
        answer = relay.request(alpha, "GET", f"{OBJECTS}{layout.order(JOB, 70)}?{query}")
        assert code(answer)[1] in ("bad-query",), query


def test_a_member_waits_at_few_places_and_leaves_them_when_it_goes(relay, alpha):
    links = []
    for number in (71, 72):
        target = f"{OBJECTS}{layout.order(JOB, number)}?wait=25"
        link = socket.create_connection(("127.0.0.1", relay.port), timeout=60)
        header = sign_request(alpha, "GET", target)
        link.sendall(
            f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n".encode()
        )
        links.append(link)
    until(lambda: relay.objects.waiting.count == 2, "both wait")
    third = relay.request(alpha, "GET", f"{OBJECTS}{layout.order(JOB, 73)}?wait=1")
    assert code(third) == (429, "too-many")
    for link in links:
        link.close()
    until(lambda: relay.objects.waiting.count == 0, "the relay sees that they left")


# ---- what an operator sees


def access_lines(caplog):
    return [json.loads(r.getMessage()) for r in caplog.records if r.name.endswith("access")]


def test_health_metrics_and_log_say_nothing_private(relay, alpha, caplog):
    with caplog.at_level("INFO", logger="fedflow.relay.access"):
        relay.as_(alpha).put(up(80), b"secret-bytes")
        relay.request(alpha, "GET", "/v1/objects/" + "%41" * 400)
        relay.as_(alpha).get(up(80))
        until(lambda: len(access_lines(caplog)) == 3, "the line of an answer follows it")
    lines = access_lines(caplog)
    assert [line["status"] for line in lines] == [201, 404, 200]
    assert lines[0]["member"] == "alpha"
    assert lines[0]["bytes_in"] == 12
    assert all(len(line["path"]) <= 300 and "\n" not in line["path"] for line in lines)
    assert "secret" not in caplog.text
    text = httpx.get(f"{relay.url}/metrics").text
    assert 'fedflow_relay_requests_total{kind="up",method="PUT",role="site",status="201"}' in text
    for name in (JOB, "alpha", alpha.public.hex(), "000080"):
        assert name not in text
    assert httpx.get(f"{relay.url}/healthz").text == "ok\n"


def test_a_store_that_is_away_is_an_outage_not_a_crash(own, monkeypatch):
    alpha = own.as_(own.parties.sites["alpha"])

    async def away(*_):
        raise OSError("no disk")

    for name in ("size", "put", "names", "get"):
        monkeypatch.setattr(own.objects.store, name, away)
    for use in (
        lambda: alpha.put(up(1), b"x"),
        lambda: alpha.get(up(1)),
        lambda: alpha.list("jobs"),
    ):
        with pytest.raises(OSError, match="503"):
            use()
    assert httpx.get(f"{own.url}/readyz").status_code == 503
    monkeypatch.undo()
    alpha.put(up(1), b"x")
    assert httpx.get(f"{own.url}/readyz").status_code == 200


def test_what_is_held_in_memory_is_limited(own):
    own.objects.memory._most = 100
    own.objects.memory.held = 90
    alpha = own.as_(own.parties.sites["alpha"])
    with pytest.raises(OSError, match="503"):
        alpha.put(up(1), b"x" * 20)
    own.objects.memory.held = 0
    alpha.put(up(1), b"x" * 200)  # one alone always fits


def test_a_party_is_named_by_its_role():
    assert Party(os.urandom(32), None, "").word == "authority"
    assert Party(os.urandom(32), Role.SITE, "").word == "site"
