"""fedflow: privacy-hardened federated learning, orchestrated by Prefect.

The folders are the architecture: see ``docs/architecture.md``.
"""

__version__ = "0.1.0"
