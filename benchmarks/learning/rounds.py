"""Rounds to an accuracy: FedSGD against FedAvg, as in Table 2 of McMahan et al. (AISTATS 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.figures import Row, say
from benchmarks.learning.digits import FRACTION, SITES, dealt, federated, plan_of, rounds_to
from benchmarks.utility.report import Amount

TARGET, QUICK_TARGET = 97.0, 80.0
#: Their 2NN, C = 0.1, 97 %: FedSGD (B = all, E = 1), FedAvg with B = 10 and E = 1 (Table 1).
PUBLISHED = {"iid": (1474.0, 87.0), "shards": (1796.0, 664.0)}
BATCH, EPOCHS = 10, 5
MOST = {"fedsgd": 2_500, "fedavg": 400}
RATES = {("fedsgd", "iid"): 0.5, ("fedavg", "iid"): 0.1}
RATES |= {("fedsgd", "shards"): 0.3, ("fedavg", "shards"): 0.05}


@dataclass(frozen=True)
class _Method:
    name: str
    how: str

    def rounds(self, amount: Amount) -> tuple[float | None, int]:
        """Rounds to the target, and how many were run."""
        sites = 20 if amount.quick else SITES
        most = amount.images(60_000)
        fraction = 0.25 if amount.quick else FRACTION
        target = QUICK_TARGET if amount.quick else TARGET
        fields = {"training__learning_rate": RATES[self.name, self.how]}
        if self.name == "fedavg":
            per_site = most // sites
            fields |= {"privacy__sample_rate": BATCH / per_site}
            fields |= {"training__local_steps": None, "training__local_epochs": EPOCHS}
        run = federated(
            plan_of(sites, fraction, **fields),
            dealt(self.how, most, sites, 0),
            most,
            0,
            secure=True,
            every=1 if self.name == "fedavg" else 5,
        )
        rounds = MOST[self.name] // 25 if amount.quick else MOST[self.name]
        for score in run.rounds(rounds, target):
            say(f"{self.name} {self.how}: {score:.2f} after round {len(run.curve)}")
        return rounds_to(run.curve, target), len(run.curve)


def round_rows(amount: Amount) -> Iterator[Row]:
    """Rounds of each method on each partition, and their ratios."""
    size = "2NN, 100 sites, C=0.1, to 97 %, secure aggregation on"
    if amount.quick:
        size = "2NN, 20 sites, C=0.25, to 80 %, secure aggregation on"
    for how in ("iid",) if amount.quick else ("iid", "shards"):
        found = {}
        for name in ("fedsgd", "fedavg"):
            reached, run = _Method(name, how).rounds(amount)
            found[name] = reached or float(run)
            theirs = PUBLISHED[how][name == "fedavg"]
            note = "" if reached else f"not reached after {run} rounds, which are counted; "
            if name == "fedavg":
                note += f"B={BATCH}, E={EPOCHS}; "
            yield Row(
                f"{name}_rounds_{how}",
                "rounds",
                (found[name],),
                size=size,
                note=f"{note}published {theirs:g} (E=1)",
                judged=not amount.quick,
            )
        yield Row(
            f"fedavg_round_gain_{how}",
            "x",
            (found["fedsgd"] / found["fedavg"],),
            bar=">= 10" if how == "iid" else None,
            size=size,
            judged=not amount.quick,
        )
