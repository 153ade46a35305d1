"""The coordinator: orders rounds, runs the server side of secure aggregation, updates the model.

Trusted for availability only. It never sees an unmasked update, and everything it does is signed so
that sites and auditors can check it. Knows nothing of Prefect.
"""
