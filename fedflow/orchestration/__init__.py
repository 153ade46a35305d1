"""Prefect's side of fedflow: the worker, sessions, registration and a local server.

The only room that imports Prefect. Importing it registers the worker type ``fedflow``, which is how
the entry point ``prefect.collections`` makes it known. Prefect carries states and small names only.
"""

from fedflow.orchestration.worker import FedflowWorker

__all__ = ["FedflowWorker"]
