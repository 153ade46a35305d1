"""docs/afternoon.md, typed as it stands: five machines, from an empty folder to the audit.

Only the section "Install" is not typed: this environment is what it makes. Machines are network
namespaces; without those (root and iproute2) they are five folders, and the hub is on loopback.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from hosts import hosts, need_hosts, why_not
from processes import is_alive
from tutorial import Block, Carry, Failed, Terminal, fill, read

from fedflow.orchestration.local_server import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "afternoon.md").read_text()
STEPS = list(read(PAGE))
MACHINES = ("hub", "berlin", "paris", "rome", "oslo")
SITES = MACHINES[1:]
#: Longest time any block may take on a busy machine (seconds).
PATIENCE = 700.0


class Tutorial:
    """A person with five terminals, and what they noted of what was printed."""

    def __init__(self, folder, commands, replaced):
        folder.mkdir()
        self.replaced, self.known, self.printed = replaced, {}, {}
        self.terminals = {}
        for name in MACHINES:
            home = folder / name
            environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
            environment |= {"HOME": str(home), "COLUMNS": "120"}
            environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
            self.terminals[name] = Terminal(commands[name], home, environment)

    def follow(self, steps):
        for step in steps:
            if isinstance(step, Carry):
                source, target = (self.terminals[n].folder for n in (step.source, step.target))
                shutil.copy(source / step.file, target / step.file)
            elif step.heading != "Install":
                self.type(step)

    def type(self, block):
        began = time.monotonic()
        for machine in block.machines:
            mine = {**self.known, "NAME-OF-THIS-MACHINE": machine}
            text = fill(block.text, mine)
            for old, new in self.replaced.items():
                text = text.replace(old, new)
            self.terminals[machine].begin(text)
        for machine in block.machines:
            out = self.terminals[machine].finish(PATIENCE)
            self.printed[block.heading, machine] = (
                self.printed.get((block.heading, machine), "") + out
            )
            self.note(machine, out)
        print(f"{time.monotonic() - began:6.1f} s  {block.heading}: {', '.join(block.machines)}")

    def note(self, machine, out):
        """Keys and fingerprints, with whose they are: as the page says, from what was printed."""
        if found := re.search(r"public key   ([0-9a-f]{64})", out):
            self.known.setdefault("PUBLIC-KEY-OF-AUTHORITY", found[1])
        if found := re.search(r"fingerprint  ((?:[0-9a-f]{4} ?){8}).*read it aloud", out):
            self.known["FINGERPRINT-OF-AUTHORITY"] = found[1].strip()
        for found in re.finditer(r"fingerprint  ((?:[0-9a-f]{4} ?){8}) +\(of (\S+);", out):
            assert found[2] in (machine, "coordinator")
            self.known[f"FINGERPRINT-OF-{found[2].upper()}"] = found[1].strip()

    def close(self):
        for terminal in self.terminals.values():
            terminal.close()


def follow_all(folder, commands, replaced):
    tutorial = Tutorial(folder, commands, replaced)
    try:
        tutorial.follow(STEPS)
        return tutorial
    except BaseException:
        for path in sorted(folder.glob("*/*.log")) + sorted(folder.glob("*/*.out")):
            print(f"---- {path.relative_to(folder)}\n{path.read_text(errors='replace')[-3000:]}")
        raise
    finally:
        tutorial.close()


def check(tutorial, folder):
    """What the page promises, from what was printed and what is there."""
    said = tutorial.printed
    assert "completed" in said["Lose a site, and see it return", "hub"]
    rounds = re.findall(
        r"^ +(\d+) +([34])( +\S+)?? +(?:[\d.]+ +)?[\d.]+ +[\d.]+ k?B *$",
        said["Lose a site, and see it return", "hub"],
        re.MULTILINE,
    )
    # Whether a round went on without it depends on the moment: what it had sent still counts.
    log = (folder / "oslo" / "oslo" / "agent.log").read_text()
    assert log.count("joined job first") == 2
    assert all(without.strip() in ("", "oslo") for _, _, without in rounds)
    assert rounds[-1][:2] == ("80", "4")  # it came back
    assert "audit verified" in said["Trust nobody: the audit", "hub"]
    assert (folder / "hub" / "audit.html").stat().st_size > 1000
    for label in SITES:
        status = said["What it cost", label]
        assert "rows/train" in status
        assert "rows/evaluate" in status


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_page_works_as_it_stands(tmp_path):
    """On five hosts; where there can be none, in five folders, and skipped by name after that."""
    if os.environ.get("FEDFLOW_CI") == "1":
        need_hosts()
    reason = why_not()
    # Short: the kernel counts every byte of a socket's path.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedflow-"))) / "m"
        shell, replaced = ["bash", "--norc"], {}
        commands = dict.fromkeys(MACHINES, shell)
        if reason:
            replaced = {"10.20.0.1": "127.0.0.1"}
            replaced |= {port: str(free_port()) for port in ("8790", "4200")}
        else:
            made = stack.enter_context(hosts(*MACHINES))
            commands = {name: host.command(*shell) for name, host in made.items()}
        check(follow_all(folder, commands, replaced), folder)
    if reason:
        pytest.skip(f"it works in five folders, and was not tried on five hosts: {reason}")


def test_only_the_installation_is_left_out():
    blocks = [step for step in STEPS if isinstance(step, Block)]
    left_out = [line for b in blocks if b.heading == "Install" for line in b.text.splitlines()]
    assert all(line.startswith(("python3.11 -m venv", "pip install")) for line in left_out)
    assert {machine for b in blocks for machine in b.machines} == set(MACHINES)
    assert len(blocks) > 15


def test_a_block_without_a_machine_is_found():
    with pytest.raises(ValueError, match="on which machine, under 'Two'"):
        list(read("## One\n\n**On hub**\n\n```sh\nls\n```\n\n## Two\n\n```sh\nls\n```\n"))


def test_a_blank_that_nothing_has_told_is_found():
    with pytest.raises(KeyError, match="FINGERPRINT-OF-ROME"):
        fill('ask "FINGERPRINT-OF-ROME"', {"FINGERPRINT-OF-PARIS": "1f2e"})


def test_a_command_that_fails_ends_the_walk(tmp_path):
    terminal = Terminal(["bash", "--norc"], tmp_path / "home", dict(os.environ))
    try:
        terminal.begin("X=1\nsleep 60 &\necho $! > pid\n")
        terminal.finish(30)
        sleeper = int((tmp_path / "home" / "pid").read_text())
        terminal.begin('echo "X is $X"\nfalse\necho never\n')
        with pytest.raises(Failed, match="X is 1") as failed:
            terminal.finish(30)
        assert "never" not in str(failed.value)
    finally:
        terminal.close()
    until = time.monotonic() + 20
    while is_alive(sleeper) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(sleeper)
