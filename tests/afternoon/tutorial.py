"""Reads the tutorial as a person does: what to type where, and what to carry from where to where.

A block belongs to the machines of the line above it (``**On berlin and paris**``); to be filled in
are words in capitals and quotes. Each machine has one terminal: a shell that stays open.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_STEP = re.compile(
    r"^## (?P<heading>[^\n]+)$"
    r"|^\*\*On (?P<machines>[a-z, ]+)\*\*\n\n```sh\n(?P<text>.*?)^```$"
    r"|^\*\*Carry\*\* (?P<carry>.*?)\.$"
    r"|^```sh\n(?P<stray>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CARRIED = re.compile(r"(?:`(?P<file>[^`]+)` )?from (?P<source>\w+) to (?P<target>\w+)")
_BLANK = re.compile(r'"([A-Z]+(?:-[A-Z]+)+)"')


@dataclass(frozen=True)
class Block:
    """What is typed on some machines, under a heading."""

    heading: str
    machines: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Carry:
    """A file that somebody brings from one machine to another."""

    file: str
    source: str
    target: str


def read(page: str) -> Iterator[Block | Carry]:
    """The steps of a page, in order; ValueError for a block that nobody knows where to type."""
    heading = ""
    for found in _STEP.finditer(page):
        if found["heading"] is not None:
            heading = found["heading"]
        elif found["machines"] is not None:
            names = re.split(r", | and ", found["machines"])
            yield Block(heading, tuple(names), found["text"])
        elif found["carry"] is not None:
            file = ""
            for one in _CARRIED.finditer(found["carry"]):
                file = one["file"] or file
                yield Carry(file, one["source"], one["target"])
        else:
            raise ValueError(f"on which machine, under {heading!r}: {found['stray']}")


def blanks(text: str) -> set[str]:
    """What a block asks to fill in."""
    return set(_BLANK.findall(text))


def fill(text: str, known: dict[str, str]) -> str:
    """The block as a person pastes it; KeyError for a blank that nothing so far has told."""
    return _BLANK.sub(lambda found: f'"{known[found[1]]}"', text)


class Failed(AssertionError):
    """A block did not work; with all that it printed."""


class Terminal:
    """One machine's terminal: a shell in its folder, as a login would give, with job control."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self.folder, self._count = folder, 0
        folder.mkdir()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._type("set -emo pipefail")

    def _type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def begin(self, text: str) -> None:
        """Paste a block; :meth:`finish` waits for the prompt."""
        self._count += 1
        block = self.folder / f".block-{self._count}.sh"
        block.write_text(text)
        self._type(f". {block} < /dev/null; echo; echo .prompt-{self._count}")

    def finish(self, seconds: float) -> str:
        """What the block printed. :class:`Failed` when a command failed, or after ``seconds``."""
        out, prompt = b"", f"\n.prompt-{self._count}\n".encode()
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while prompt not in out:
                if not ready.select(max(0.0, until - time.monotonic())):
                    raise Failed(f"after {seconds:.0f} s it still runs:\n{out.decode()}")
                more = os.read(self.process.stdout.fileno(), 65536)
                if not more:
                    raise Failed(f"a command failed:\n{out.decode()}")
                out += more
        return out[: out.index(prompt)].decode()

    def close(self) -> None:
        """End the shell and whatever was started in it."""
        until = time.monotonic() + 10.0
        while (left := _session(self.process.pid)) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.process.wait()


def _session(leader: int) -> list[int]:
    """Every process of a terminal: those of its session, which background jobs stay in."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
