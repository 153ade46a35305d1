# The types here are those of Flower, which is not installed beside fedflow.
# ruff: noqa: ANN001, ANN201, ANN204
"""Flower's SecAgg+ workflow as it is published; prints what each round took."""

import time

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

app = ServerApp()


class Timed(SecAggPlusWorkflow):
    """Says what one round took."""

    def __call__(self, grid, context):
        began = time.monotonic()
        super().__call__(grid, context)
        print(f"ROUND_S {time.monotonic() - began:.3f}", flush=True)


@app.main()
def main(grid, context):
    """Run all rounds over three nodes."""
    zeros = np.zeros(context.run_config["d"], np.float32)
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=3,
        min_available_clients=3,
        initial_parameters=ndarrays_to_parameters([zeros]),
    )
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    legacy = LegacyContext(context=context, config=config, strategy=strategy)
    workflow = Timed(num_shares=3, reconstruction_threshold=2)
    DefaultWorkflow(fit_workflow=workflow)(grid, legacy)
