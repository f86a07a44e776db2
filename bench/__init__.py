"""Benchmarks: each prints a table of ratios, and exits 1 when a target is missed."""
