"""Workloads that come with fedflow: one file each, with the format of its data."""
