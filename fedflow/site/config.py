"""A site's folder: what is in it, how it is made, and the lock that keeps a second agent out.

::

    site.toml        where things are (this file is the operator's; no secrets)
    policy.toml      what the site accepts: everything else is refused
    identity.pem     the site's Ed25519 private key, mode 0600, made here, never leaves
    identity.next.pem  the key that is to replace it, until the authority has agreed
    roster           the newest list of the federation's members, for a site that joined by one
    ledger.sqlite    the privacy ledger and the durable single-shot facts
    anchors.sqlite   the highest ledger positions seen: the site's own and its peers'
    history/         what the site computed of each job's history itself
    spool/           masked vectors on their way out, until they have left
    alarms.json      which budget alarms were told
    agent.log        the site's own log: may name data problems, never leaves
    agent.lock       held while an agent runs
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import InputError, Refusal
from fedflow.exchange import resolve_url
from fedflow.federation.keys import passphrase
from fedflow.federation.members import RosterMemory
from fedflow.privacy.ledger import Ledger
from fedflow.settings_file import load_toml, toml_string
from fedflow.site.new_key import KEY, load_key
from fedflow.site.policy import Policy, load_policy, template
from fedflow.telemetry.endpoint import ADDRESS

SITE_TEMPLATE = """\
# A fedflow site. Relative paths are relative to this folder.
label = {label}          # the name in rosters and in Prefect: lower-case letters, digits, dashes
exchange = {exchange}    # the mailbox: a folder, an fsspec URL, or the https:// of a relay
socket = {socket}        # where this site's Prefect worker finds the agent
socket_group = ""          # a group the worker's user is in, where that is another user
poll_seconds = 0.05        # how often the agent looks into the exchange
spot_check_chunks = 1      # random chunks of every opened sum the agent recomputes; 0 for none
budget_events = true       # tell Prefect when an account has 50, 25 or 10 % left, or no next round
metrics = ""               # host:port for Prometheus, such as "127.0.0.1:9464"; empty for none
log_format = "text"        # agent.log for people; "json" for machines
"""


class SiteSettings(BaseModel):
    """``site.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    label: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="a plain name")
    exchange: str = Field(description="a folder or an fsspec URL; empty until the site joins")
    socket: str = Field(min_length=1, description="path of the agent's Unix socket")
    socket_group: str = Field(
        default="",
        description="group (a name or number) that may use the socket; empty for this user alone",
    )
    poll_seconds: float = Field(gt=0, le=60, description="seconds between looks at the exchange")
    spot_check_chunks: int = Field(
        default=1, ge=0, le=4096, description="random chunks of every sum that are recomputed"
    )
    budget_events: bool = Field(
        default=True, description="whether Prefect hears of accounts that run low"
    )
    metrics: str = Field(default="", pattern=ADDRESS, description="host:port, or empty for none")
    log_format: Literal["text", "json"] = Field(default="text", description="form of agent.log")


@dataclass(frozen=True)
class SiteFolder:
    """The parts of one site, opened."""

    path: Path
    settings: SiteSettings
    policy: Policy
    identity: Identity

    @property
    def socket(self) -> Path:
        """The agent's socket."""
        # Without "..": the kernel counts every byte of a socket's path.
        return Path(os.path.normpath(self.path / self.settings.socket))

    @property
    def exchange(self) -> str:
        """The exchange's URL, with a relative folder taken from the site's folder."""
        if not self.settings.exchange:
            raise Refusal(
                "not-joined",
                f"site {self.settings.label} has no exchange yet: `fedflow site join`, or write one"
                f" into {self.path / 'site.toml'}",
            )
        return resolve_url(self.settings.exchange, self.path)

    def dataset(self, name: str) -> Path:
        """The data file of a dataset in the policy."""
        return self.path / self.policy.datasets[name].path

    @property
    def ledger_path(self) -> Path:
        """The ledger's file."""
        return self.path / "ledger.sqlite"

    def members(self) -> RosterMemory | None:
        """What the site has seen of the federation's members; None while it trusts no authority."""
        authority = self.policy.trust.authority
        return (
            RosterMemory(self.path / "roster", PublicKey.from_hex(authority)) if authority else None
        )

    @property
    def log_path(self) -> Path:
        """The site's own log."""
        return self.path / "agent.log"


def init_site(
    path: Path,
    *,
    label: str,
    exchange: str = "",
    socket: str = "agent.sock",
    policy: str | None = None,
) -> Identity:
    """Make a site's folder: key, settings, policy, empty ledger. Refuses a folder already in use.

    ``exchange`` may come later, by joining. ``policy`` is the text of policy.toml; without it a
    commented template that accepts nothing yet.
    """
    if (path / "site.toml").exists() or (path / "identity.pem").exists():
        raise Refusal(
            "already-a-site", f"{path} already holds a site; choose another folder or remove it"
        )
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    text = SITE_TEMPLATE.format(
        label=toml_string(label), exchange=toml_string(exchange), socket=toml_string(socket)
    )
    (path / "site.toml").write_text(text)
    try:
        load_toml(path / "site.toml", SiteSettings)
    except InputError:
        (path / "site.toml").unlink()
        raise
    (path / "policy.toml").write_text(policy if policy is not None else template())
    identity = Identity.generate()
    identity.save(path / KEY, passphrase())
    Ledger.create(path / "ledger.sqlite", identity, label).close()
    return identity


def open_site(path: Path) -> SiteFolder:
    """Open a site's folder; InputError or Refusal naming what is missing or wrong."""
    if not (path / "site.toml").is_file():
        raise InputError(
            "is not a site folder (it has no site.toml); make one with `fedflow site init`",
            where=str(path),
        )
    settings = load_toml(path / "site.toml", SiteSettings)
    if not (path / "policy.toml").is_file():
        raise Refusal("no-policy", f"{path} has no policy.toml: without a policy all is refused")
    policy = load_policy(path / "policy.toml")
    return SiteFolder(path.resolve(), settings, policy, load_key(path))


def lock_site(path: Path) -> IO[str]:
    """Hold the folder for this process; Refusal naming the other agent when it is taken."""
    file = open(path / "agent.lock", "a+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise Refusal(
            "already-running",
            f"another agent (process {holder}) already runs on {path}; stop it first",
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
