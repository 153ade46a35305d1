"""A coordinator without Prefect that times a job: until what second was a model how good.

    python -m benchmarks.learning.timed_job FOLDER TARGET ROWS.csv...

It prints the score after every round as JSON, [seconds since the first order, AUC x 100], and ends
the job at the target. Scores are exact, on all held-out persons, which only a benchmark may see.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from benchmarks.learning.paced import workload
from benchmarks.overhead.federation import JOB
from fedflow.coordinator.runner import JobRunner, RoundRecord
from fedflow.coordinator.settings import open_coordinator
from fedflow.coordinator.stopping import ALL_ROUNDS
from fedflow.errors import Aborted
from fedflow.exchange import layout
from fedflow.learning.evaluation import exact_score
from fedflow.learning.model_file import decode_model
from fedflow.learning.server_state import parameters, state_spec
from fedflow.learning.workload import Persons, model_spec
from fedflow.wire.messages import Kind

JOIN_SECONDS = 120.0


async def timed(folder: Path, target: float, rows: Persons) -> list[tuple[float, float]]:
    """Run the job to ``target`` or its last round; Aborted when a round has no sum."""
    runner = JobRunner(open_coordinator(folder), JOB)
    runner.resume()
    present = await runner.wait_for_sites(JOIN_SECONDS)
    if len(present) < len(runner.job.roster):
        raise Aborted("too-few-sites", "not all sites came")
    plan, began = runner.job.plan, time.monotonic()
    spec = state_spec(model_spec(workload), plan)
    curve: list[tuple[float, float]] = []
    for number in range(1, plan.plan.rounds + 1):
        runner.dispatch(number, 1, Kind.TRAIN)
        result = await runner.collect()
        digest = runner.update(result)
        runner.record(RoundRecord(number=number, attempts=1), result)
        seconds = time.monotonic() - began
        data = runner.coordinator.exchange.get(layout.blob(JOB, digest))
        model = parameters(decode_model(data or b"", spec))
        curve.append((seconds, 100.0 * exact_score(workload, rows, model, plan)))
        if curve[-1][1] >= target:
            break
        runner.checkpoint()
    runner.close("completed", ALL_ROUNDS)
    return curve


def main(folder: str, target: str, *paths: str) -> None:
    """Run it."""
    loaded = [workload.load(path) for path in paths]
    rows = Persons.join([data.holdout for data in loaded])
    print(json.dumps(asyncio.run(timed(Path(folder), float(target), rows))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
