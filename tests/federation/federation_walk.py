"""A federation made with the commands a person would type, in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fedflow.cli.main import main
from fedflow.crypto.identity import Identity
from fedflow.exchange import open_exchange
from fedflow.federation.authority import AuthorityFolder, open_authority
from fedflow.federation.requests import join_request
from fedflow.wire.membership import FederationRoster, Member, Role
from fedflow.wire.sealed import seal

NOW = 1_800_000_000
DAY = 86_400


def fingerprint(path: Path) -> str:
    """What the party in this folder reads out."""
    return Identity.load(path / "identity.pem").public.fingerprint()


def member(role: Role, label: str, key: bytes, **changes: Any) -> Member:
    fields = {"not_before": NOW - DAY, "not_after": NOW + DAY, "revoked": 0}
    return Member(**({"role": role, "label": label, "public_key": key} | fields | changes))


def roster(signer: Identity, *members: Member, **changes: Any) -> FederationRoster:
    fields = {"federation": "trial", "serial": 1, "issued": NOW, "members": members}
    return FederationRoster(**(fields | {"authority": signer.public.raw} | changes))


def sealed(signer: Identity, *members: Member, **changes: Any) -> bytes:
    return seal(signer, roster(signer, *members, **changes))


def key(number: int) -> bytes:
    return bytes([number]) * 32


#: Relative to the folders of all parties, which lie side by side and can be copied together.
EXCHANGE = "../exchange"


class Walk:
    """Runs commands; keeps what they printed. Folders are below ``folder``."""

    def __init__(self, folder: Path, monkeypatch: Any, capsys: Any) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        self.exchange_path = folder / "exchange"
        self.out = self.err = ""

    def __call__(self, *arguments: Any, status: int = 0) -> str:
        self._monkeypatch.setattr(sys, "argv", ["fedflow", *map(str, arguments)])
        self._monkeypatch.setenv("COLUMNS", "200")
        self._capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.out + self.err
        assert code == status, self.out + self.err
        return self.out + self.err

    @property
    def federation(self) -> Path:
        return self.folder / "authority"

    @property
    def authority(self) -> AuthorityFolder:
        return open_authority(self.federation)

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    def site(self, label: str) -> Path:
        return self.folder / label

    @property
    def exchange(self) -> Any:
        return open_exchange(str(self.exchange_path))

    def found(self, *labels: str) -> None:
        """An authority, a coordinator and sites; all of them members and joined."""
        self(
            "federation",
            "init",
            self.federation,
            "--name",
            "trial",
            "--exchange",
            EXCHANGE,
        )
        self("coordinator", "init", self.coordinator)
        self("coordinator", "request", self.coordinator, "-o", self.folder / "lead.request")
        self.approve(self.folder / "lead.request", fingerprint(self.coordinator))
        for label in labels:
            self("site", "init", self.site(label), "--label", label)
            self.request(label)
        requests = [self.folder / f"{label}.request" for label in labels]
        if requests:
            self.approve(*requests, *(fingerprint(self.site(label)) for label in labels))
        for label in labels:
            self.join(label)
        self(
            "coordinator",
            "join",
            self.coordinator,
            "--exchange",
            EXCHANGE,
            "--authority-fingerprint",
            fingerprint(self.federation),
        )

    def request(self, label: str) -> Path:
        path = self.folder / f"{label}.request"
        self("site", "request", self.site(label), "-o", path)
        return path

    def approve(self, *requests_and_fingerprints: Any, status: int = 0) -> str:
        files = [x for x in requests_and_fingerprints if isinstance(x, Path)]
        heard = [x for x in requests_and_fingerprints if isinstance(x, str)]
        options = [part for one in heard for part in ("--fingerprint", one)]
        return self("federation", "approve", self.federation, *files, *options, status=status)

    def join(self, label: str, status: int = 0) -> str:
        return self(
            *("site", "join", self.site(label), "--exchange", EXCHANGE),
            *("--authority-fingerprint", fingerprint(self.federation)),
            status=status,
        )

    def facts(self, *arguments: Any) -> Any:
        self(*arguments, "--json")
        return json.loads(self.out)


def request_file(path: Path, identity: Identity, label: str, role: Role = Role.SITE) -> Path:
    path.write_bytes(join_request(identity, role, label))
    return path
