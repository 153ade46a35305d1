"""What the kernel says of files that appear, so that kills can be aimed at moments (Linux)."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from dataclasses import dataclass
from pathlib import Path

_CREATE, _MOVED_TO, _DELETE, _ONLYDIR = 0x100, 0x80, 0x200, 0x01000000
_ISDIR = 0x40000000
_CLOEXEC, _NONBLOCK = 0o2000000, 0o4000
_HEAD = struct.Struct("iIII")


@dataclass(frozen=True)
class Seen:
    """A name that appeared (or went, where ``gone``) in a watched folder."""

    path: str
    gone: bool = False


class Watch:
    """Folders and everything below them, also what is made there later."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_CLOEXEC | _NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify is not there")
        self._folders: dict[int, str] = {}

    def add(self, folder: Path | str) -> list[Seen]:
        """Watch a folder; what is in it already."""
        mask = _CREATE | _MOVED_TO | _DELETE | _ONLYDIR
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), mask)
        if number < 0:
            return []
        self._folders[number] = str(folder)
        found: list[Seen] = []
        try:
            for entry in os.scandir(folder):
                found.append(Seen(entry.path))
                if entry.is_dir(follow_symlinks=False):
                    found += self.add(entry.path)
        except OSError:
            pass  # it went again
        return found

    def wait(self, seconds: float) -> list[Seen]:
        """What happened; waits for something at most so long."""
        if not select.select([self._fd], [], [], max(0.0, seconds))[0]:
            return []
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return []
        out: list[Seen] = []
        at = 0
        while at < len(data):
            number, mask, _, size = _HEAD.unpack_from(data, at)
            name = data[at + _HEAD.size : at + _HEAD.size + size].rstrip(b"\0")
            at += _HEAD.size + size
            folder = self._folders.get(number)
            if folder is None or not name:
                continue
            path = f"{folder}/{os.fsdecode(name)}"
            out.append(Seen(path, bool(mask & _DELETE)))
            if mask & _ISDIR and not mask & _DELETE:
                out += self.add(path)
        return out

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)
