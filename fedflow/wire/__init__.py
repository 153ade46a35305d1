"""What crosses a trust boundary, as bytes: one canonical codec, message types, signing labels.

Knows nothing of I/O, Prefect or torch. Everything here is pure.
"""
