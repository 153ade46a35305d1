"""Writes the files of every site of an example: ``python -m benchmarks.data.sites NAME FOLDER``.

Fetches the data first where they are not here yet (:mod:`benchmarks.data.fetch`).
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.data.fetch import SOURCES, DataMissing, fetch
from benchmarks.data.mails import Mail, dealt, load_mails
from benchmarks.data.mnist import load_mnist
from benchmarks.data.plays import load_plays
from benchmarks.data.towns import grouped, load_towns
from fedflow.crypto.csprng import Csprng
from fedflow.simulation import partition


def write_digits(folder: Path, sites: int = 10) -> None:
    """MNIST's images for training, dealt alike: ``site-1.safetensors`` and on."""
    train, _ = load_mnist()
    parts = partition.iid(len(train), sites, Csprng.from_seed(bytes(32)))
    for number, part in enumerate(parts, 1):
        chosen = train.take(part)
        tensors = {"images": np.ascontiguousarray(chosen.images), "labels": chosen.labels.copy()}
        save_file(tensors, folder / f"site-{number}.safetensors")


def write_plays(folder: Path, sites: int = 6) -> None:
    """Shakespeare's plays in turn: ``site-1.txt`` and on, each line a role and a speech."""
    texts: list[list[str]] = [[] for _ in range(sites)]
    for number, (play, speeches) in enumerate(load_plays().items()):
        texts[number % sites] += [f"{play}/{role}\t{text}\n" for role, text in speeches]
    for number, lines in enumerate(texts, 1):
        (folder / f"site-{number}.txt").write_text("".join(lines), encoding="utf-8")


def write_towns(folder: Path, sites: int = 6) -> None:
    """Neighbouring towns of Boston: ``site-1.csv`` and on."""
    for number, tracts in enumerate(grouped(load_towns(), sites), 1):
        _write_table(folder / f"site-{number}.csv", [list(tracts[0]), *map(dict.values, tracts)])


def write_mails(folder: Path, mails: Mapping[str, Sequence[Mail]] | None = None) -> list[Path]:
    """Mails by the host of their mailing list, one CSV file each; returns the paths."""
    paths = []
    for site, some in (dealt(load_mails()) if mails is None else mails).items():
        paths.append(folder / f"{site}.csv")
        rows = ([mail.person, mail.text, int(mail.spam)] for mail in some)
        _write_table(paths[-1], [["person", "text", "spam"], *rows])
    return paths


def _write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


#: Data set, as for `make data-..` -> what writes its sites.
WRITERS: Mapping[str, Callable[[Path], object]] = {
    "mnist": write_digits,
    "shakespeare": write_plays,
    "towns": write_towns,
    "mails": write_mails,
}


def main(arguments: Sequence[str]) -> int:
    """Fetch and write; 2 for a wrong command, 1 when the data are not to be had."""
    if len(arguments) != 2 or arguments[0] not in WRITERS:
        print(f"usage: python -m benchmarks.data.sites {'|'.join(WRITERS)} FOLDER", file=sys.stderr)
        return 2
    name, folder = arguments[0], Path(arguments[1])
    try:
        if not SOURCES[name].present:
            fetch(SOURCES[name])
        folder.mkdir(parents=True, exist_ok=True)
        WRITERS[name](folder)
    except (DataMissing, subprocess.CalledProcessError, OSError) as failed:
        print(f"{name}: {failed}", file=sys.stderr)
        return 1
    for path in sorted(folder.iterdir()):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
