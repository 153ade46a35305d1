"""Starts a site's agent that also writes down every vector before it is masked.

``python chaos_witness.py FOLDER site start SITE`` is ``fedflow site start SITE`` with one more file
per release: ``FOLDER/<context>``, the uint32 words that the site masked. From these the driver adds
up, on its own, what each published sum must be. No real site has this: the words are what secure
aggregation hides.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def install(folder: Path) -> None:
    """Put the witness between the site's round and its release."""
    import fedflow.site.release as release
    import fedflow.site.round as rounds

    original_words, original_release = release.ring_words, release.make_release
    if rounds.make_release is not original_release:
        raise SystemExit("the site makes its releases elsewhere: the witness would see nothing")
    seen: list[np.ndarray] = []

    def ring_words(*arguments: Any) -> Any:
        words = original_words(*arguments)
        seen.clear()

        def span(start: int, stop: int) -> Any:
            part = words(start, stop)
            seen.append(part.copy())  # before it is masked, in place
            return part

        return span

    def make_release(
        root: Path, ledger: Any, job: Any, order: Any, client: Any, vector: Any
    ) -> Any:
        made = original_release(root, ledger, job, order, client, vector)
        # Nothing has left yet. Without this file a release that leaves cannot be explained.
        write_once(folder / client.context.hex(), np.concatenate(seen).astype("<u4").tobytes())
        return made

    release.ring_words = ring_words
    rounds.make_release = make_release


def write_once(path: Path, data: bytes) -> None:
    """A second release for one context gets a name of its own, for the driver to find."""
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            break
        except FileExistsError:
            path = path.with_name(path.name + ".again")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    witness = Path(sys.argv.pop(1))
    witness.mkdir(parents=True, exist_ok=True)
    install(witness)
    from fedflow.cli.main import main

    main()
