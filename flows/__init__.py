"""Deployable Prefect flows. Each reads like a paragraph of the protocol."""

import sys

from fedflow.errors import Refusal
from fedflow.extras import need

try:
    need("coordinator")
except Refusal as missing:
    if sys.argv[:1] != ["-m"]:  # what stands there while ``python -m flows.…`` looks for its module
        raise
    print(f"fedflow: refused: {missing}", file=sys.stderr)
    raise SystemExit(2) from None
