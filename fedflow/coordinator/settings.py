"""``coordinator.toml``: where the coordinator's key, exchange and state are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.exchange import Exchange, open_exchange, resolve_url
from fedflow.settings_file import load_toml, toml_string

COORDINATOR_TEMPLATE = """\
# The coordinator of a federation. Relative paths are relative to this folder.
exchange = {exchange}       # the mailbox shared with the sites: a folder or an fsspec URL
authority = "{authority}"     # public key (hex) whose manifests this coordinator runs
poll_seconds = 0.03           # how often it looks for answers
max_attempts = 3              # orders for one round before the job gives up
"""


class CoordinatorSettings(BaseModel):
    """The settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    exchange: str = Field(min_length=1, description="a folder or an fsspec URL")
    authority: str = Field(pattern=r"^[0-9a-f]{64}$", description="public key in hex")
    poll_seconds: float = Field(gt=0, le=60, description="seconds between looks at the exchange")
    max_attempts: int = Field(ge=1, le=100, description="orders for one round")


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

    @property
    def anchors_path(self) -> Path:
        """What the coordinator remembers of sites' ledgers, over all jobs."""
        return self.path / "anchors.sqlite"

    def events_path(self, job: str) -> Path:
        """The job's event log: JSON lines, appended."""
        return self.path / "jobs" / job / "events.jsonl"


def init_coordinator(path: Path, *, exchange: str, authority: PublicKey) -> Identity:
    """Make a coordinator's folder with a fresh key; refuses to overwrite a key."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = Identity.generate()
    identity.save(path / "identity.pem")
    text = COORDINATOR_TEMPLATE.format(exchange=toml_string(exchange), authority=authority.hex())
    (path / "coordinator.toml").write_text(text)
    return identity


def open_coordinator(path: Path) -> CoordinatorFolder:
    """Open a coordinator's folder; InputError naming what is wrong."""
    settings = load_toml(path / "coordinator.toml", CoordinatorSettings)
    identity = Identity.load(path / "identity.pem")
    return CoordinatorFolder(
        path=path.resolve(),
        settings=settings,
        identity=identity,
        authority=PublicKey.from_hex(settings.authority),
        exchange=open_exchange(resolve_url(settings.exchange, path), identity),
    )
