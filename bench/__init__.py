"""Benchmarks. Each prints a table of ratios, and exits with 1 when a target is missed."""
