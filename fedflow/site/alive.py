"""Whether a site's daemon answers at its socket: ``python -m fedflow.site.alive SOCKET``.

For service managers and containers. Exit status 0 when it does and 1 when not; nothing of the
site's folder is read, so the worker's user may ask, too.
"""

from __future__ import annotations

import asyncio
import sys

from fedflow.errors import FedflowError
from fedflow.site.socket_protocol import LinkLost, SiteLink


def main() -> None:
    """Ask once, and say what the daemon does."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fedflow.site.alive SOCKET")
    try:
        status = asyncio.run(SiteLink(sys.argv[1]).status())
    except (LinkLost, FedflowError) as error:
        sys.exit(f"fedflow: {error}")
    print(f"site {status.site}: {status.phase or 'idle'}")


if __name__ == "__main__":
    main()
