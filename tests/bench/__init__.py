"""Measures the cost of policyd, compared with other programs and with the floor, a minimal policy server in C.

`make bench` runs it; docs/performance.md has its results.
"""
