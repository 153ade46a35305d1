"""``coordinator.toml``: where the coordinator's key, exchange and state are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import InputError, Refusal
from fedflow.exchange import Exchange, open_exchange, resolve_url
from fedflow.federation.keys import passphrase
from fedflow.federation.members import RosterMemory
from fedflow.settings_file import load_toml, toml_string
from fedflow.telemetry.endpoint import ADDRESS

COORDINATOR_TEMPLATE = """\
# The coordinator of a federation. Relative paths are relative to this folder.
exchange = {exchange}       # the mailbox: a folder, an fsspec URL, or the https:// of a relay
authority = {authority}     # public key (hex) whose manifests this coordinator runs
poll_seconds = 0.03           # how often it looks for answers
max_attempts = 3              # orders for one round before the job gives up
metrics = ""                  # host:port for Prometheus, such as "127.0.0.1:9465"; empty for none
log_format = "text"           # coordinator.log for people; "json" for machines
"""


class CoordinatorSettings(BaseModel):
    """The settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    exchange: str = Field(description="a folder or an fsspec URL; empty until it joins")
    authority: str = Field(
        pattern=r"^([0-9a-f]{64})?$", description="public key in hex; empty until it joins"
    )
    poll_seconds: float = Field(gt=0, le=60, description="seconds between looks at the exchange")
    max_attempts: int = Field(ge=1, le=100, description="orders for one round")
    metrics: str = Field(default="", pattern=ADDRESS, description="host:port, or empty for none")
    log_format: Literal["text", "json"] = Field(
        default="text", description="form of coordinator.log"
    )


@dataclass(frozen=True)
class CoordinatorFolder:
    """An opened coordinator folder: settings, identity, exchange, and where state is written."""

    path: Path
    settings: CoordinatorSettings
    identity: Identity
    authority: PublicKey
    exchange: Exchange

    def state_path(self, job: str) -> Path:
        """The checkpoint of a job."""
        return self.path / "jobs" / job / "checkpoint.json"

    def members(self) -> RosterMemory:
        """What the coordinator has seen of the federation's members."""
        return RosterMemory(self.path / "roster", self.authority)

    def lease_path(self, job: str) -> Path:
        """What the process that coordinates a job holds a lock on."""
        return self.path / "jobs" / job / "lease"

    @property
    def anchors_path(self) -> Path:
        """What the coordinator remembers of sites' ledgers, over all jobs."""
        return self.path / "anchors.sqlite"

    def events_path(self, job: str) -> Path:
        """The job's event log: JSON lines, appended."""
        return self.path / "jobs" / job / "events.jsonl"


def init_coordinator(
    path: Path, *, exchange: str = "", authority: PublicKey | None = None
) -> Identity:
    """Make a coordinator's folder with a fresh key; refuses to overwrite a key.

    Exchange and authority may come later, by joining.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = Identity.generate()
    identity.save(path / "identity.pem", passphrase())
    text = COORDINATOR_TEMPLATE.format(
        exchange=toml_string(exchange),
        authority=toml_string(authority.hex() if authority else ""),
    )
    (path / "coordinator.toml").write_text(text)
    return identity


def load_coordinator(path: Path) -> tuple[CoordinatorSettings, Identity]:
    """Settings and key, also of a coordinator that has not joined; InputError naming what is wrong.

    The key's passphrase comes from the environment.
    """
    if not (path / "coordinator.toml").is_file():
        raise InputError(
            "is not a coordinator's folder (it has no coordinator.toml); make one with `fedflow"
            " coordinator init`",
            where=str(path),
        )
    settings = load_toml(path / "coordinator.toml", CoordinatorSettings)
    return settings, Identity.load(path / "identity.pem", passphrase())


def open_coordinator(path: Path) -> CoordinatorFolder:
    """Open a coordinator's folder; InputError naming what is wrong."""
    settings, identity = load_coordinator(path)
    if not (settings.exchange and settings.authority):
        raise Refusal(
            "not-joined",
            f"{path} has no exchange or trusts no authority yet: `fedflow coordinator join`",
        )
    return CoordinatorFolder(
        path=path.resolve(),
        settings=settings,
        identity=identity,
        authority=PublicKey.from_hex(settings.authority),
        exchange=open_exchange(resolve_url(settings.exchange, path), identity),
    )
