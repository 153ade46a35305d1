"""Data sets of the benchmarks, none of them part of it: `make data-mnist`, `make data-ihdp`, .."""
