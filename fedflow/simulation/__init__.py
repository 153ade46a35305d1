"""A whole federation in one process or a few, through the code that sites and servers run.

For audits, benchmarks and tests. Nothing here is used by a site; nothing here knows Prefect.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedflow.simulation.federation import Federation, Opened

__all__ = ["Federation", "Opened"]


def __getattr__(name: str) -> Any:
    """Load :class:`Federation` when it is asked for: shards train nothing and need no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedflow.simulation import federation

    return getattr(federation, name)
