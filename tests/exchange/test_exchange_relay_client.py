"""A relay is untrusted: whatever it answers, its client does not hang, fill memory or obey."""

import asyncio
import json
import socket
import threading

import pytest

from fedflow.crypto.identity import Identity
from fedflow.errors import InputError, Misuse, Refusal, Violation
from fedflow.exchange import frame, open_exchange
from fedflow.exchange.relay import RelayExchange

ME = Identity.generate()


class Liar:
    """Answers every connection with the same bytes; keeps the first line of each request."""

    def __init__(self, answer, *, hold=False):
        self.answer, self.hold, self.seen = answer, hold, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(link,), daemon=True).start()

    def talk(self, link):
        data = b""
        try:
            while b"\r\n\r\n" not in data:
                data += link.recv(65536)
            self.seen.append(data.partition(b"\r\n")[0].decode())
            parts = [self.answer] if isinstance(self.answer, bytes) else self.answer
            for part in parts:
                link.sendall(part)
        except OSError:
            pass
        if self.hold:
            self.open.append(link)
        else:
            link.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        for link in self.open:
            link.close()


def http(status, body=b"", *headers):
    head = [f"HTTP/1.1 {status} X", *headers, "Connection: close"]
    if not any("ength" in h or "ncoding" in h for h in headers):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def said(status, code, reason):
    return http(status, json.dumps({"code": code, "reason": reason}).encode())


def every_way(url):
    relay = RelayExchange(url, ME)
    return {
        "get": lambda: relay.get("a/b", 100),
        "put": lambda: relay.put("a/b", b"x"),
        "list": lambda: relay.list("a"),
        "wait": lambda: asyncio.run(relay.wait("a/b", 100, seconds=1)),
    }


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (said(401, "clock", "late"), Refusal, "clock"),
        (said(403, "revoked", "no"), Refusal, "revoked"),
        (said(409, "already-put", "taken"), Violation, "already-put"),
        (said(413, "too-long", "much"), Violation, "too-long"),
        (said(404, "no-such-path", "?"), Violation, "bad-answer"),
        (said(429, "too-many", "wait"), OSError, None),
        (said(503, "store", "away"), OSError, None),
        (http(500, b"\xff\xfe"), OSError, None),
        (http(302, b"", "Location: http://127.0.0.1:1/"), Violation, "bad-answer"),
        (http(403, b"[" * 4000), Refusal, "unknown"),
        (b"", OSError, None),
        (b"garbage\r\n\r\n", OSError, None),
        (http(200, b"short", "Content-Length: 50"), OSError, None),
    ],
)
def test_each_answer_has_its_error(answer, error, code):
    for name in ("get", "put", "list", "wait"):
        with Liar(answer) as liar:
            with pytest.raises(error) as caught:
                every_way(liar.url)[name]()
            if code is not None:
                assert caught.value.code == code, name


def test_nobody_there_is_an_outage():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for call in every_way(f"http://127.0.0.1:{port}").values():
        with pytest.raises(OSError, match="not reachable"):
            call()


def test_a_reason_is_shown_as_short_plain_text():
    reason = "\x1b[31mred\nline " + "x" * 3000
    with Liar(said(403, "c\x1b" * 100, reason)) as liar, pytest.raises(Refusal) as caught:
        RelayExchange(liar.url, ME).get("a/b")
    text = caught.value.message + caught.value.code
    assert text.isprintable()
    assert len(text) < 500


def endless():
    yield b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"10000\r\n" + b"x" * 0x10000 + b"\r\n"


@pytest.mark.parametrize("name", ["get", "wait"])
@pytest.mark.timeout(60)
def test_an_answer_is_cut_off_at_the_readers_limit_whatever_it_announces(name):
    with Liar(endless()) as liar, pytest.raises(Violation) as caught:
        every_way(liar.url)[name]()
    assert caught.value.code == "too-long"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"x" * 60, "not-an-object"),
        (frame(b"ab")[:-1], "truncated"),
        (frame(b"a") + b"x", "trailing-bytes"),
    ],
)
def test_a_damaged_object_is_recognised(body, code):
    with Liar(http(200, body)) as liar, pytest.raises(Violation) as caught:
        RelayExchange(liar.url, ME).get("a/b", 100)
    assert caught.value.code == code


@pytest.mark.parametrize("body", [b"", b"[]", b'{"names": 1}', b'{"names": [1]}', b"[" * 100_000])
def test_a_list_that_cannot_be_read_is_refused(body):
    with Liar(http(200, body)) as liar, pytest.raises(Violation) as caught:
        RelayExchange(liar.url, ME).list("a")
    assert caught.value.code == "bad-answer"


def test_names_in_a_list_never_lead_elsewhere():
    body = json.dumps({"names": ["b", "a", "../x", "a/b", "y" * 999]}).encode()
    with Liar(http(200, body)) as liar:
        assert RelayExchange(liar.url, ME).list("a") == ["a", "b"]


def test_what_is_sent_is_asked_again_once_with_another_signature():
    with Liar(b"") as liar:
        with pytest.raises(OSError, match="closed"):
            RelayExchange(liar.url, ME).put("a/b", b"x")
        assert liar.seen == ["PUT /v1/objects/a/b HTTP/1.1"] * 2


async def test_waiting_can_be_cancelled_at_any_time():
    with Liar(b"", hold=True) as liar:
        task = asyncio.ensure_future(RelayExchange(liar.url, ME).wait("a/b", seconds=25))
        while not liar.seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        assert liar.seen == ["GET /v1/objects/a/b?wait=25.000 HTTP/1.1"]


@pytest.mark.parametrize(
    "url",
    ["http://", "http://user:secret@host/", "http://host/?x=1", "https://host/#x", "http://[::"],
)
def test_an_address_is_only_an_address(url):
    with pytest.raises(InputError):
        open_exchange(url, ME)


def test_a_relay_needs_to_know_who_asks():
    with pytest.raises(InputError, match="identity"):
        open_exchange("http://127.0.0.1:1")


def test_names_are_checked_before_anything_is_sent():
    with Liar(b"") as liar:
        for use in (lambda r: r.get("../x"), lambda r: r.put("a b", b""), lambda r: r.list("a?b")):
            with pytest.raises(Misuse):
                use(RelayExchange(liar.url, ME))
        assert liar.seen == []


def test_the_machines_proxy_is_never_asked_for_loopback(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with Liar(http(200, frame(b"x"))) as liar:
        assert RelayExchange(liar.url, ME).get("a/b") == b"x"
