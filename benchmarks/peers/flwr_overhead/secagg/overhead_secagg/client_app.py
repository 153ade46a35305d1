# The types here are those of Flower, which is not installed beside fedflow.
# ruff: noqa: ANN001, ANN201
"""A site whose training is one addition, under Flower's SecAgg+."""

from flwr.client import ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod


class Trivial(NumPyClient):
    """Adds a little to everything."""

    def fit(self, parameters, config):
        return [array + 0.01 for array in parameters], 10, {}


def client_of(context):
    """The client of any node."""
    return Trivial().to_client()


app = ClientApp(client_fn=client_of, mods=[secaggplus_mod])
