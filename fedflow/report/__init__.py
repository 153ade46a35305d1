"""What a job did, for people: plots, a self-contained HTML report and tables for the terminal.

This room only reads a plain dictionary of public facts (:mod:`fedflow.report.facts`). It knows no
keys, no data, no Prefect and no torch, and nothing it writes loads anything from a network.
"""
