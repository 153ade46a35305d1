"""``fedflow demo``: the whole system on one machine, every part a process of its own.

Makes a federation of six sites out of the vendored data, starts a local Prefect server, six site
agents and six workers, runs the training flow, kills one site on purpose, and reports. Nothing in
here is used by a real federation.
"""
