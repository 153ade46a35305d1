"""A relay with a small federation: in a thread for most tests, as a process to be killed."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx

from fedflow.crypto.identity import Identity
from fedflow.exchange import layout
from fedflow.exchange.relay import RelayExchange
from fedflow.exchange.request_signing import sign_request
from fedflow.orchestration.local_server import free_port
from fedflow.relay.limits import Limits
from fedflow.relay.objects import Objects
from fedflow.relay.server import Listening, make_server
from fedflow.relay.store import FolderStore
from fedflow.wire.membership import FederationRoster, Member, Role
from fedflow.wire.messages import Manifest, RosterEntry
from fedflow.wire.sealed import seal

JOB = "job-1"
SITES = ("alpha", "beta", "gamma")


def member(role: Role, label: str, identity: Identity, **changes: int) -> Member:
    now = int(time.time())
    entry = Member(int(role), label, identity.public.raw, now - 100, now + 86_400, 0)
    return replace(entry, **changes)


class Parties:
    """Keys of a federation, its member list and one job's manifest."""

    def __init__(self) -> None:
        self.authority = Identity.generate()
        self.coordinator, self.auditor, self.other = (Identity.generate() for _ in range(3))
        self.stranger = Identity.generate()
        self.sites = {label: Identity.generate() for label in SITES}
        self.outsider = Identity.generate()  # a member, but in no job
        self.members = [
            *(member(Role.SITE, label, key) for label, key in self.sites.items()),
            member(Role.SITE, "outsider", self.outsider),
            member(Role.COORDINATOR, "main", self.coordinator),
            member(Role.COORDINATOR, "other", self.other),
            member(Role.AUDITOR, "officer", self.auditor),
        ]

    def roster(self, serial: int = 1, **changes: object) -> bytes:
        fields = {"federation": "fed", "members": tuple(self.members), **changes}
        made = FederationRoster(serial=serial, issued=int(time.time()), **fields)
        return seal(self.authority, made)

    def revoke(self, identity: Identity) -> None:
        self.members = [
            replace(m, revoked=int(time.time()) - 1) if m.public_key == identity.public.raw else m
            for m in self.members
        ]

    def manifest(
        self, job: str = JOB, *, signer: Identity | None = None, **changes: object
    ) -> bytes:
        now = int(time.time())
        entries = (
            RosterEntry(index, self.sites[label].public.raw, label)
            for index, label in enumerate(SITES)
        )
        fields = {
            "job": job,
            "coordinator": self.coordinator.public.raw,
            "roster": tuple(entries),
            "colluders": 1,
            "minimum": 3,
            "dimension": 4,
            "model_spec": bytes(32),
            "initial_model": bytes(32),
            "value_range": 1.0,
            "plan": b"{}",
            "created": now,
            "not_after": now + 3600,
        }
        return seal(signer or self.authority, Manifest(**(fields | changes)))


class RelayInThread:
    """A relay over a folder (or another store), in a thread of this process."""

    def __init__(self, store: object, parties: Parties, limits: Limits | None = None) -> None:
        self.parties = parties
        self.objects = Objects(store, parties.authority.public, limits or Limits())
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = make_server(self.objects, Listening("127.0.0.1", self.port))
        self.thread = threading.Thread(target=self.server.run)
        self._clients: dict[bytes, RelayExchange] = {}

    def start(self) -> RelayInThread:
        self.thread.start()
        until(lambda: self.server.started or not self.thread.is_alive(), "the relay starts")
        return self

    def stop(self) -> None:
        self.objects.waiting.close()
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def as_(self, identity: Identity) -> RelayExchange:
        """The relay as this party sees it, over one kept connection."""
        key = identity.public.raw
        if key not in self._clients:
            self._clients[key] = RelayExchange(self.url, identity)
        return self._clients[key]

    def publish(self, job: str = JOB) -> None:
        """The member list and one job's manifest, put by the authority."""
        authority = self.as_(self.parties.authority)
        with contextlib.suppress(Exception):
            authority.put(layout.federation_roster(1), self.parties.roster(1))
        authority.put(layout.manifest(job), self.parties.manifest(job))

    def request(
        self, identity: Identity, method: str, target: str, body: bytes = b"", **headers: str
    ) -> httpx.Response:
        """One request of its own, signed unless ``authorization`` is given."""
        sent = {"authorization": sign_request(identity, method, target, body), **headers}
        return httpx.request(
            method, self.url + target, content=body or None, headers=sent, timeout=60
        )


def folder_relay(folder: Path, parties: Parties | None = None, limits: Limits | None = None):
    return RelayInThread(FolderStore(folder / "store"), parties or Parties(), limits)


class RelayProcess:
    """``fedflow exchange serve`` as a process of its own."""

    def __init__(self, *arguments: str, authority: str, log: Path) -> None:
        self.arguments, self.authority, self.log = arguments, authority, log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RelayProcess:
        command = [sys.executable, "-m", "fedflow.cli.main", "exchange", "serve", *self.arguments]
        command += ["--authority", self.authority, "--port", str(self.port)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until(self.healthy, f"the relay starts: {self.log}")
        return self

    def healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def end(self, number: int = signal.SIGKILL) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(60)


def until(true: object, what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
