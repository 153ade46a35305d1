"""Plans, workloads (data, model, loss), private local training, evaluation and the server's step.

Knows nothing of keys, messages or Prefect. Modules that need torch import it themselves, so that a
plan or a model file can be read without it.
"""
