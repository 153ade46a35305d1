"""Kills the processes of a real federation at random moments, and checks what is left each time.

``make chaos ARGS="--kills 500"``, or ``python tests/chaos/chaos.py --kills 50 --exchange folder
--server sqlite``. See docs/chaos.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = ("coordinator", "agent", "trainer", "worker", "server", "relay", "postgres", "redis")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="chaos",
        description="Kill -9 at random moments of real jobs; check every job from outside.",
        epilog="Example: python tests/chaos/chaos.py --kills 50 --exchange folder --server sqlite",
    )
    out.add_argument("--kills", type=int, default=500, help="how many; 500 if not said")
    out.add_argument("--targets", default="all", help=f"of {', '.join(TARGETS)}; with commas")
    out.add_argument("--exchange", choices=("folder", "relay"), default="relay")
    out.add_argument("--server", choices=("sqlite", "postgres"), default="postgres")
    out.add_argument("--sites", type=int, default=4, help="3 are needed for a sum")
    out.add_argument("--rounds", type=int, default=8, help="training rounds of a job")
    out.add_argument("--every", type=float, default=1.0, help="mean seconds between two kills")
    out.add_argument("--leg-seconds", type=float, default=4.0, help="time for each leg")
    out.add_argument("--seed", type=int, help="of an earlier run, to repeat it as far as it goes")
    out.add_argument("--keep", type=Path, help="folder to work in; kept, and gone on with if used")
    out.add_argument("--audit-every", type=int, default=4, help="jobs between two full audits")
    return out


def main() -> None:
    """Run it."""
    options = parser().parse_args()
    # The repository's rooms have no packages.
    sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parents[1])]
    from chaos_run import Run

    from fedflow.errors import FedflowError

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(Run(options).run())
    except FedflowError as error:
        raise SystemExit(f"chaos: {error}") from None


if __name__ == "__main__":
    main()
