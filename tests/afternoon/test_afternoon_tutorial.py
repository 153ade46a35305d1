"""docs/afternoon.md, typed as it stands: five machines, from an empty folder to the audit.

Only the section "Install" is not typed: this environment is what it makes. Machines are network
namespaces; without those (root and iproute2) they are five folders, and the hub is on loopback.
"""

import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from hosts import hosts, need_hosts
from tutorial import Carry, Terminal, fill, read

PAGE = (Path(__file__).parents[2] / "docs" / "afternoon.md").read_text()
STEPS = list(read(PAGE))
MACHINES = ("hub", "berlin", "paris", "rome", "oslo")
SITES = MACHINES[1:]
#: Longest time any block may take on a busy machine (seconds).
PATIENCE = 400.0


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
        r"^ +(\d+) +([34])( +\S+)?? +(?:[\d.]+ +)?[\d.]+ *$",
        said["Lose a site, and see it return", "hub"],
        re.MULTILINE,
    )
    lost = [int(number) for number, sites, without in rounds if without.strip() == "oslo"]
    assert lost, said["Lose a site, and see it return", "hub"]
    assert all(without.strip() in ("", "oslo") for _, _, without in rounds)
    assert rounds[-1][:2] == ("120", "4")  # it came back
    assert "verified" in said["Trust nobody: the audit", "hub"].lower()
    assert (folder / "hub" / "audit.html").stat().st_size > 1000
    for label in SITES:
        status = said["What it cost", label]
        assert "rows/train" in status
        assert "rows/holdout" in status or "rows/eval" in status, status


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_works_as_it_stands_on_five_machines(tmp_path):
    need_hosts()
    with hosts(*MACHINES) as made:
        commands = {name: host.command("bash", "--norc") for name, host in made.items()}
        tutorial = follow_all(tmp_path / "machines", commands, {})
    check(tutorial, tmp_path / "machines")
