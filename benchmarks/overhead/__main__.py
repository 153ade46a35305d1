"""``python -m benchmarks.overhead``: what a round takes beyond training, and a peer's."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from benchmarks.figures import Report, Row, WrongResult, add_form_options, machine, say, show
from benchmarks.overhead.flower import flower_rounds
from benchmarks.overhead.running import Measured, run
from benchmarks.secagg.versus import PEERS, PeerMissing, python_of
from fedflow.errors import Refusal

ABOUT = """Seconds per round of a job whose training is trivial: a real Prefect server, a
coordinator process, agents, training processes and workers, secure aggregation on, all on this
machine."""

EXAMPLES = """examples:
  python -m benchmarks.overhead                             3, 10, 30 and 100 sites
  python -m benchmarks.overhead --sites 3 --server postgres --exchange relay
  python -m benchmarks.overhead --sites 3 --peer flwr       Flower's rounds in the same run

Up to 10 sites have processes of their own. Of 30 and 100 two processes hold all.
"""


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        "python -m benchmarks.overhead",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--sites", type=int, nargs="+", default=[3, 10, 30, 100], metavar="N", help="federations"
    )
    made.add_argument("--rounds", type=int, default=22, metavar="N", help="rounds of each (22)")
    made.add_argument(
        "--exchange", choices=("folder", "relay"), default="folder", help="the exchange"
    )
    made.add_argument(
        "--server", choices=("sqlite", "postgres"), default="sqlite", help="Prefect's database"
    )
    made.add_argument("--peer", choices=tuple(PEERS), help="also measure this peer, 3 sites")
    made.add_argument("--quick", action="store_true", help="3 sites, few rounds")
    add_form_options(made)
    return made


def our_rows(measured: Measured) -> Iterator[Row]:
    """The rows of one federation."""
    size, three = f"n={measured.sites}", measured.sites == 3
    name = "round_overhead_s" if three else f"round_overhead_s_n{measured.sites}"
    note = f"from order to order, less {1000 * measured.training:.1f} ms of training; "
    load = f"load {os.getloadavg()[0]:.1f} after it"
    bar = "<= 0.5" if three else None
    yield Row(name, "s", measured.overhead, bar, size, f"{note}{measured.hosting}; {load}")
    yield Row(f"round_wall_s_n{measured.sites}", "s", measured.rounds, None, size, "with training")
    yield Row(
        f"secure_sum_s_n{measured.sites}", "s", measured.to_sum, None, size, "from order to sum"
    )


def flower_rows(ours: Measured) -> Iterator[Row]:
    """Flower's seconds per round over ours, both whole, and the seconds."""
    own = sorted(ours.rounds)[len(ours.rounds) // 2]
    for kind, bar in (("plain", ">= 12"), ("secagg", ">= 45")):
        theirs = flower_rounds(kind)
        about = "3 SuperNodes, Flower's defaults; against our whole round, with secure aggregation"
        ratios = tuple(seconds / own for seconds in theirs)
        yield Row(f"flower_{kind}_over_ours", "x", ratios, bar, "n=3", about)
        yield Row(f"flower_{kind}_round_s", "s", theirs, None, "n=3")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status: 1 when a round went wrong, 2 for a bad request."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser()
    chosen = options.parse_args(given)
    sites, rounds = ([3], 8) if chosen.quick else (chosen.sites, chosen.rounds)
    if min(sites) < 3 or rounds < 4:
        options.error("a federation has at least 3 sites, and 4 rounds give 2 to measure")
    if chosen.peer and 3 not in sites:
        options.error("--peer is measured with 3 sites: name 3 among --sites")
    report = Report(" ".join(["python -m benchmarks.overhead", *given]), machine())
    try:
        if chosen.peer:
            python_of(chosen.peer)
        for number in sites:
            say(f"{number} sites, {rounds} rounds")
            measured = run(number, rounds, chosen.server, chosen.exchange)
            report.add(our_rows(measured))
            if number == 3 and chosen.peer:
                report.add(flower_rows(measured))
    except (PeerMissing, Refusal) as unable:
        say(f"no figures: {unable}")
        return 2
    except WrongResult as wrong:
        say(f"no figures, a result is wrong: {wrong}")
        return 1
    show(report, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
