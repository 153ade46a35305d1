# The types here are those of Flower, which is not installed beside fedflow.
# ruff: noqa: ANN001, ANN201
"""Flower's FedAvg; prints what each round took, from its start to the next one's."""

import time

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """Says when a round is over."""

    began = None

    def configure_train(self, server_round, arrays, config, grid):
        self.say()
        self.began = time.monotonic()
        return super().configure_train(server_round, arrays, config, grid)

    def say(self):
        if self.began is not None:
            print(f"ROUND_S {time.monotonic() - self.began:.3f}", flush=True)


@app.main()
def main(grid, context):
    """Run all rounds over three nodes."""
    strategy = Timed(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3
    )
    arrays = ArrayRecord([np.zeros(context.run_config["d"], np.float32)])
    rounds = context.run_config["num-server-rounds"]
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds)
    strategy.say()
