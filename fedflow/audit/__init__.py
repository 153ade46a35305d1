"""Offline proof of what a job did, from what it left behind.

An auditor needs the keys it pins, the exchange folder and the sites' exported ledgers; no server,
no site, no private key, no torch. Everything a party stated is recomputed: signatures, masked sums,
every model from the one before, every ledger, and every epsilon with a second accountant.
"""
