"""What can be seen without leaving the site: key, policy, ledger, data, disk, versions, agent."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.suites import SUITES
from fedflow.doctor.findings import Finding, fault, note, ok, warning
from fedflow.errors import FedflowError
from fedflow.learning.plan import Plan
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.outlook import outlooks
from fedflow.site.config import SiteFolder
from fedflow.site.policy import check_plan
from fedflow.site.socket_protocol import MAX_PATH, LinkLost, SiteLink

#: Free space under which a site is warned, and under which nothing can be promised (bytes).
LITTLE_SPACE, NO_SPACE = 2 << 30, 200 << 20
_SITE_EXTRAS = ("", "site")


def check_folder(folder: Path) -> Iterator[Finding]:
    """Who may look into the site's folder."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        yield fault(
            "folder",
            f"other users may enter it (mode {mode:04o})",
            f"chmod 700 {folder}",
        )
    else:
        yield ok("folder", f"{folder}, its owner's alone")


def check_key(site: SiteFolder) -> Iterator[Finding]:
    """That the key is there; where the site is in its life is the federation's to say."""
    yield ok("key", f"fingerprint {site.identity.public.fingerprint()}")


def check_policy(site: SiteFolder) -> Iterator[Finding]:
    """Whether the policy would ever say yes."""
    policy = site.policy
    if not policy.trust.authority:
        yield fault(
            "policy",
            "names no authority, so every job is refused",
            "join a federation: `fedflow site request`, then `fedflow site join`",
        )
    elif not policy.trust.coordinators:
        yield fault(
            "policy", "names no coordinator, so every job is refused", "fill [trust] coordinators"
        )
    elif not policy.datasets:
        yield fault(
            "policy",
            "offers no data set, so every job is refused",
            f"describe one under [datasets.NAME] in {site.path / 'policy.toml'}",
        )
    else:
        names = ", ".join(policy.datasets)
        yield ok("policy", f"trusts one authority; data sets: {names}")
    now = datetime.now(UTC)
    if not policy.limits.schedule.is_open(now):
        opening = policy.limits.schedule.next_opening(now)
        when = f"{opening:%Y-%m-%d %H:%M} UTC" if opening else "in more than two weeks"
        yield note("policy", f"outside its hours now; orders are taken from {when}")


def check_plan_here(site: SiteFolder, plan: Plan) -> Iterator[Finding]:
    """Whether this site would take part in a job with ``plan``."""
    try:
        dataset, _ = check_plan(site.policy, plan)
    except FedflowError as error:
        yield fault("plan", error.message, "talk to who wrote the plan, or change the policy")
    else:
        yield ok("plan", f"{plan.plan.name} is within the policy, on data set {dataset}")


def check_ledger(site: SiteFolder) -> Iterator[Finding]:
    """Every entry's signature, hash and price, and what is left."""
    try:
        ledger = Ledger.open(site.ledger_path, site.identity.public)
    except FedflowError as error:
        yield fault(
            "ledger", error.message, "do not restore an older copy; see docs: ledger, backups"
        )
        return
    try:
        accounts = outlooks(ledger.entries())
        entries = len(ledger.entries())
    finally:
        ledger.close()
    yield ok("ledger", f"{entries} entries verified")
    for account in accounts:
        left = account.account.epsilon_left
        if account.rounds_left == 0:
            yield warning(
                "budget",
                f"{account.name} cannot pay one more round like its last",
                "new data, or a decision of the privacy officer; see `fedflow site status`",
            )
        else:
            yield ok("budget", f"{account.name} has epsilon {left:.3g} left")


def check_data(site: SiteFolder) -> Iterator[Finding]:
    """Whether the data files are there, readable, and nobody else's."""
    for name, dataset in site.policy.datasets.items():
        path = site.dataset(name)
        check = f"data {name}"
        try:
            with open(path, "rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            yield fault(
                check,
                f"{path} cannot be read: {error.strerror}",
                f"put the data there, or change [datasets.{name}] path",
            )
            continue
        if mode & 0o007:
            yield warning(check, f"every user may open it (mode {mode:04o})", f"chmod o= {path}")
        elif size == 0:
            yield fault(check, f"{path} is empty", "put the data there")
        else:
            yield ok(check, f"{path} is readable, for workload {dataset.workload}")


def check_workloads(site: SiteFolder) -> Iterator[Finding]:
    """Whether the code of each workload is installed, at all; it is never fetched."""
    known = {entry.name for entry in metadata.entry_points(group="fedflow.workloads")}
    for name in site.policy.limits.workloads:
        if name in known:
            yield ok("workload", f"{name} is installed")
        else:
            yield fault(
                "workload",
                f"{name} is allowed by the policy but not installed",
                f"install its package; installed are: {', '.join(sorted(known))}",
            )


def check_disk(site: SiteFolder) -> Iterator[Finding]:
    """Space for ledger and releases, and that what is written is kept."""
    free = shutil.disk_usage(site.path).free
    says = f"{free / (1 << 30):.1f} GiB free"
    if free < NO_SPACE:
        yield fault("disk", says, "make room: without it the ledger refuses, and so does the site")
    elif free < LITTLE_SPACE:
        yield warning("disk", says, "make room soon")
    else:
        yield ok("disk", says)
    scratch = site.path / f".doctor-{os.getpid()}"
    try:
        with open(scratch, "xb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield fault(
            "disk",
            f"{site.path} cannot be written: {error.strerror}",
            "run this as the agent's user; check mount and owner",
        )
    finally:
        scratch.unlink(missing_ok=True)


def check_versions() -> Iterator[Finding]:
    """What is installed, against what this release was made for."""
    python = platform.python_version()
    yield ok("versions", f"Python {python}, fedflow {metadata.version('fedflow')}")
    if sys.version_info[:2] != (3, 11):
        yield warning("versions", "fedflow is made for Python 3.11", "use Python 3.11")
    wrong = []
    for text in metadata.requires("fedflow") or ():
        needed = Requirement(text)
        if needed.marker and not any(needed.marker.evaluate({"extra": e}) for e in _SITE_EXTRAS):
            continue
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed.name} {found} where {needed.specifier} is needed")
    if wrong:
        yield fault("versions", "; ".join(wrong), "pip install 'fedflow[site]', into a fresh venv")
    else:
        yield ok("versions", "all packages of fedflow[site] as needed")


def check_suites(site: SiteFolder) -> Iterator[Finding]:
    """Whether this machine's cryptography can do what the policy allows."""
    for suite in SUITES.values():
        if suite.name not in site.policy.limits.suites:
            continue
        csprng = Csprng.from_os()
        try:
            suite.check_public(
                suite.new_mask_keys(csprng).public, suite.new_share_keys(csprng).public
            )
        except Exception as error:  # whatever the library raises for what it cannot do
            yield fault(
                "cryptography",
                f"{suite.name} is allowed by the policy, but fails here: {type(error).__name__}",
                "install the `cryptography` wheel of this release (OpenSSL 3.5 or newer)",
            )
        else:
            yield ok("cryptography", f"{suite.name} works")


def check_agent(site: SiteFolder) -> Iterator[Finding]:
    """Whether the agent answers at its socket."""
    path = site.socket
    if len(os.fsencode(path)) > MAX_PATH:
        yield fault(
            "agent",
            f"the socket's path is longer than the {MAX_PATH} bytes the kernel allows",
            "set `socket` in site.toml to a shorter path",
        )
        return
    try:
        status = asyncio.run(SiteLink(path).status())
    except (LinkLost, OSError, FedflowError):
        yield note("agent", "not running", f"fedflow site start {site.path}")
        return
    doing = f"in job {status.job}, round {status.round}" if status.job else "idle"
    yield ok("agent", f"running, {doing}")
