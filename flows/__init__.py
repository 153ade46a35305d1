"""Deployable Prefect flows. Each reads like a paragraph of the protocol."""
