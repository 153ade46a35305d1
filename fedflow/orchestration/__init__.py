"""Prefect's side of fedflow: the worker, tasks, sessions, registration and a local server.

The only room that imports Prefect (with ``flows/``). The entry point ``prefect.collections`` names
the module ``worker``, whose import registers the worker type ``fedflow``; this package itself stays
light, so that starting a server or a worker process needs no Prefect in the process that does it.
"""
