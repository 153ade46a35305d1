"""Machines of a federation, as network namespaces of this one.

Each :class:`Host` has loopback and one link, over a pair of virtual interfaces, to a bridge in a
namespace of its own. Nothing is added to this machine's own network, so runs side by side do not
meet. Namespaces are named after the process that made them; those of processes that are gone are
removed before new ones are made, and so a run that was killed leaves nothing for long.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedflow.tied import die_with_parent

PREFIX = "fedflow"
#: The address of the first host; the others follow.
NETWORK = "10.20.0."
_MADE = Path("/run/netns")
#: Places of this module's routing rules: what is let through, then what is dropped.
_ORDERS = ("40", "50")


def _ip(*arguments: str, netns: str = "", check: bool = True) -> str:
    where = ["-n", netns] if netns else []
    done = subprocess.run(["ip", *where, *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str:
    """Why this machine has no hosts to offer; empty when it has."""
    if os.geteuid() != 0:
        return "network namespaces are for root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "there is no ip or no tc here (Debian: iproute2)"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    try:
        _ip("netns", "add", probe)
        _ip("link", "add", "name", "br0", "type", "bridge", netns=probe)
        _ip("link", "add", "name", "one", "type", "veth", "peer", "name", "other", netns=probe)
    except OSError as error:
        return f"this machine gives no network namespaces ({error})"
    finally:
        _ip("netns", "delete", probe, check=False)
    return ""


def need_hosts() -> None:
    """Skip the test, by name, where there can be no hosts.

    In CI that fails wherever root and ``ip`` are there: then they have to work.
    """
    if reason := why_not():
        if os.environ.get("FEDFLOW_CI") == "1" and os.geteuid() == 0 and shutil.which("ip"):
            pytest.fail(reason)
        pytest.skip(reason)


def sweep() -> None:
    """Remove what processes that are gone left behind."""
    for path in sorted(_MADE.glob(f"{PREFIX}-*")):
        owner = path.name.split("-")[1]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            _remove(path.name)


def _remove(netns: str) -> None:
    for pid in _ip("netns", "pids", netns, check=False).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", netns, check=False)


@dataclass
class Host:
    """One machine: its address, and what can happen to its link."""

    name: str
    address: str
    netns: str
    bridge: str
    _slow: bool = False
    _processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs ``arguments`` on this host."""
        return ["ip", "netns", "exec", self.netns, *arguments]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run something to its end; its output as text."""
        asked = {"capture_output": True, "text": True, "check": True, "timeout": 120} | options
        done: subprocess.CompletedProcess[str] = subprocess.run(self.command(*arguments), **asked)
        return done

    def start(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start something that ends with this process, or with :meth:`close`; main thread only."""
        with open(log, "ab") as out:
            process = subprocess.Popen(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._processes.append(process)
        return process

    @property
    def link(self) -> str:
        """The other end of this host's cable, at the bridge."""
        return f"to-{self.name}"[:15]

    def cut(self) -> None:
        """Pull the cable: nothing comes or goes, and nobody is told."""
        _ip("link", "set", self.link, "down", netns=self.bridge)

    def heal(self) -> None:
        """Everything as at first: the cable in, at full speed, and all answers let through."""
        _ip("link", "set", self.link, "up", netns=self.bridge)
        if self._slow:
            for netns, device in self._ends():
                subprocess.run(
                    ["tc", "-n", netns, "qdisc", "del", "dev", device, "root"],
                    capture_output=True,
                    check=False,
                )
            self._slow = False
        for rule in _ip("rule", "show", netns=self.netns).splitlines():
            if (order := rule.split(":")[0]) in _ORDERS:
                _ip("rule", "del", "pref", order, netns=self.netns)

    def slow(self, rate: str) -> None:
        """At most ``rate`` each way, such as "256kbit"; what waits longer than a second is lost."""
        shape = ["rate", rate, "burst", "8kb", "latency", "1s"]
        for netns, device in self._ends():
            subprocess.run(
                ["tc", "-n", netns, "qdisc", "replace", "dev", device, "root", "tbf", *shape],
                capture_output=True,
                check=True,
            )
        self._slow = True

    def answer_nothing_to(self, other: Host) -> None:
        """What ``other`` sends arrives here; nothing of this host's gets back to it."""
        _ip("rule", "add", "to", other.address, "pref", _ORDERS[1], "blackhole", netns=self.netns)

    def only_answer(self, other: Host, port: int) -> None:
        """To ``other`` this host can send from its TCP ``port`` alone: it can open no connection.

        As if a firewall in front of ``other`` let connections out and none in.
        """
        served = ["ipproto", "tcp", "sport", str(port), "lookup", "main"]
        rule = ["rule", "add", "to", other.address, "pref"]
        _ip(*rule, _ORDERS[0], *served, netns=self.netns)
        _ip(*rule, _ORDERS[1], "blackhole", netns=self.netns)

    def _ends(self) -> list[tuple[str, str]]:
        return [(self.netns, "eth0"), (self.bridge, self.link)]

    def close(self) -> None:
        """End what was started here, gently and then not."""
        running, self._processes = [p for p in self._processes if p.poll() is None], []
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + 10.0
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[dict[str, Host]]:
    """Hosts on one bridge: 10.20.0.1 and on, in the order of their names. Removed at the end."""
    sweep()
    run = f"{PREFIX}-{os.getpid()}-{time.monotonic_ns() % 10**6}"
    bridge, made = f"{run}-bridge", {}
    try:
        _ip("netns", "add", bridge)
        _ip("link", "add", "name", "br0", "type", "bridge", netns=bridge)
        _ip("link", "set", "br0", "up", netns=bridge)
        for number, name in enumerate(names, 1):
            host = Host(name, f"{NETWORK}{number}", f"{run}-{name}", bridge)
            _ip("netns", "add", host.netns)
            made[name] = host
            pair = ["eth0", "netns", host.netns, "type", "veth", "peer", "name", host.link]
            _ip("link", "add", "name", *pair, netns=bridge)
            _ip("link", "set", host.link, "master", "br0", "up", netns=bridge)
            _ip("address", "add", f"{host.address}/24", "dev", "eth0", netns=host.netns)
            for device in ("lo", "eth0"):
                _ip("link", "set", device, "up", netns=host.netns)
        yield made
    finally:
        for host in made.values():
            host.close()
        for netns in [*(host.netns for host in made.values()), bridge]:
            _remove(netns)
