"""Differential privacy without models: noise, events, accountants, the filter and the ledger.

Nothing here knows torch, Prefect or how bytes travel. A release is described by an event, an event
has a price, a ledger decides whether the price can still be paid, and only then may bytes leave.
"""
