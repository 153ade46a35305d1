"""A site: the daemon that holds the data, its policy, its ledger and its door for the worker.

Nothing here knows Prefect, and nothing outside this process may read what it keeps.
"""
