"""Prefect's own command line in a process whose every client is scrubbed.

``python -m fedflow.orchestration.scrubbed worker start ...``. Before Prefect makes a worker it asks
the server about pool and queues, with clients of its own that read and follow anything.
"""

from __future__ import annotations

from prefect.cli import app

from fedflow.orchestration import scrub

if __name__ == "__main__":
    scrub.everywhere()
    app()
