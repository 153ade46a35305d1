"""Prefect's side of fedflow: the worker, tasks, sessions, registration and a local server.

The only room that imports Prefect (with ``flows/``). The entry point ``prefect.collections`` names
the module ``worker``, whose import registers the worker type ``fedflow``; this package itself stays
light, so that starting a server or a worker process needs no Prefect in the process that does it.
The blocks are loaded when somebody asks for them, as ``prefect block register`` does.
"""

from __future__ import annotations

from typing import Any

_BLOCKS = ("FedflowCoordinator", "FedflowExchange", "FedflowFederation", "FedflowSite")


def __getattr__(name: str) -> Any:
    if name in _BLOCKS:
        from fedflow.orchestration import blocks

        return getattr(blocks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_BLOCKS})
