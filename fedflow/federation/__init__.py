"""Who belongs to a federation: the authority's folder, joining it, replacing keys, making jobs.

Knows neither Prefect nor training. Nobody here ever sends a secret: every party makes its own key
and keeps it, and people compare fingerprints.
"""
