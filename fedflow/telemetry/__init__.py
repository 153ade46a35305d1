"""Metrics, health and structured logs, for whoever keeps a site, a coordinator or a relay running.

Nothing private is among them: names and labels are fixed here, and values count messages, rounds
and seconds, never data, budgets or sizes of data.
"""
