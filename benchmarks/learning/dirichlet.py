"""Methods where sites hold different digits: accuracy after as many rounds, side by side.

MNIST dealt by a Dirichlet distribution with alpha 0.1 (Hsu, Qi and Brown 2019), so that most sites
hold few digits. Every method has had as many tries for its rates, on one more seed and on images
that are in neither training nor test; the best method there is compared with FedAvg on the test
images. What was found is in ``dirichlet.json``; ``python -m benchmarks.learning.dirichlet`` writes
it anew. Sums are added without masks, to the same totals.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Row, say
from benchmarks.learning.digits import Run, TwoHidden, dealt, federated, images, plan_of
from benchmarks.utility.report import Amount, interval
from fedflow.errors import Aborted
from fedflow.learning.workload import Persons

FILE = Path(__file__).with_suffix(".json")
SITES, FRACTION, HIDDEN, ALPHA = 50, 0.2, 32, 0.1
IMAGES, VALIDATION = 20_000, 5_000
ROUNDS, STEPS, BATCH, EVERY = 25, 30, 20, 5
SEEDS, TUNING_SEED = (1, 2, 3), 1000

Fields = dict[str, Any]


def _steps(optimizer: str) -> list[Fields]:
    return [
        {
            "strategy__server_optimizer": optimizer,
            "strategy__server_learning_rate": server,
            "training__learning_rate": rate,
        }
        for server in (0.01, 0.03)
        for rate in (0.05, 0.2)
    ]


_RATES: list[Fields] = [{"training__learning_rate": rate} for rate in (0.05, 0.1, 0.2, 0.4)]
#: What is tried of each method.
TRIES: Mapping[str, list[Fields]] = {
    "fedavg": _RATES,
    "fedprox": [
        {"training__learning_rate": rate, "training__proximal": pull}
        for rate in (0.1, 0.2)
        for pull in (0.1, 1.0)
    ],
    "scaffold": [
        {"training__learning_rate": rate, "strategy__name": "scaffold"}
        for rate in (0.02, 0.05, 0.1, 0.2)
    ],
    "fedadam": _steps("adam"),
    "fedyogi": _steps("yogi"),
}


@dataclass(frozen=True)
class Tuned:
    """The best try of a method, and its accuracy on the images kept for that."""

    fields: Fields
    score: float


def dirichlet_rows(amount: Amount) -> Iterator[Row]:
    """Accuracy of each method, and what the one that tuning preferred is ahead of FedAvg."""
    rounds, seeds = amount.rounds(ROUNDS), SEEDS[: amount.seeds(len(SEEDS))]
    size = (
        f"{amount.images(IMAGES)} images, {SITES} sites, alpha {ALPHA}, C={FRACTION}, {rounds}"
        f" rounds of {STEPS} steps, B={BATCH}, 2NN with {HIDDEN} units"
    )
    tuned = {name: Tuned(**found) for name, found in json.loads(FILE.read_text()).items()}
    scores: dict[str, tuple[float, ...]] = {}
    for name, best in tuned.items():
        runs = [train(name, best.fields, amount, seed, rounds) for seed in seeds]
        scores[name] = tuple(run.curve[-1][1] for run in runs)
        about = ", ".join(f"{key.partition('__')[2]} {value}" for key, value in best.fields.items())
        note = f"{interval(scores[name])}; {about}, the best of {len(TRIES[name])} tries"
        curve = tuple(
            (float(points[0][0]), statistics.fmean(score for _, score in points))
            for points in zip(*(run.curve for run in runs), strict=True)
        )
        yield Row(f"{name}_dirichlet01", "%", scores[name], None, size, note, curve=curve)
    preferred = best_of({name: best.score for name, best in tuned.items()})
    yield ahead(preferred, scores, size, judged=not amount.quick)


def best_of(scores: Mapping[str, float]) -> str:
    """The method but FedAvg that scored best in tuning, so that no test score chooses it."""
    return max((name for name in scores if name != "fedavg"), key=lambda name: scores[name])


def ahead(best: str, found: Mapping[str, tuple[float, ...]], size: str, *, judged: bool) -> Row:
    """Accuracy of ``best`` less that of FedAvg, seed by seed."""
    runs = tuple(a - b for a, b in zip(found[best], found["fedavg"], strict=True))
    note = f"{best}, chosen in tuning, less FedAvg, same seeds; {interval(runs)}"
    return Row("best_minus_fedavg_dirichlet01", "points", runs, "> 0", size, note, judged)


def tune() -> dict[str, Tuned]:
    """Every try of every method; the best of each."""
    found = {}
    for name, tries in TRIES.items():
        scored = [Tuned(fields, tried(name, fields)) for fields in tries]
        found[name] = max(scored, key=lambda each: each.score)
    return found


def tried(name: str, fields: Fields) -> float:
    """Accuracy of one try on the images kept for tuning; 0 when it diverged."""
    train_images, _ = images(IMAGES + VALIDATION)
    kept = train_images.take(np.arange(IMAGES, IMAGES + VALIDATION))
    try:
        score = train(name, fields, Amount(), TUNING_SEED, ROUNDS, kept).curve[-1][1]
    except Aborted:
        score = 0.0
    say(f"{name} {fields}: {score:.2f}")
    return score


def train(
    name: str,
    fields: Fields,
    amount: Amount,
    seed: int,
    rounds: int,
    test: Persons | None = None,
) -> Run:
    """One training by a method with ``fields`` in its plan, scored on ``test`` images (MNIST's)."""
    most = amount.images(IMAGES)
    plan = plan_of(
        SITES,
        FRACTION,
        **{
            "training__local_steps": STEPS,
            "privacy__sample_rate": BATCH * SITES / most,
        }
        | fields,
    )
    sites = dealt(f"dirichlet{ALPHA}", most, SITES, seed)
    network = functools.partial(TwoHidden, HIDDEN)
    run = federated(plan, sites, most, seed, secure=False, every=EVERY, network=network)
    run.test = run.test if test is None else test
    for score in run.rounds(rounds):
        say(f"{name} seed {seed}: {score:.2f} after round {run.curve[-1][0]}")
    return run


if __name__ == "__main__":
    made = {name: asdict(best) for name, best in tune().items()}
    FILE.write_text(json.dumps(made, indent=1) + "\n")
